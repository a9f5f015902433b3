class A:
    def run(self, x):
        return type(self).helper(x)

    @staticmethod
    def helper(x):
        return x + 2

def step(x):
    return A().run(x)
