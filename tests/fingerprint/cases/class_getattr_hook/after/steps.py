class A:
    def __getattr__(self, name):
        return name + '2'

def step(x):
    return A().anything
