class A:
    def run(self, x):
        return type(self).helper(x)

    @staticmethod
    def helper(x):
        return x + 1

def step(x):
    return A().run(x)
