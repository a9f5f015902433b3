class A:
    def __getattr__(self, name):
        return name + '1'

def step(x):
    return A().anything
