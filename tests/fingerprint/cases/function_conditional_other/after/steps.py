if True:
    def helper(x):
        return x + 1
else:
    def helper(x):
        return x + 3

def step(x):
    return helper(x)
