FAST = True

if FAST:
    def helper(x):
        return x + 1
else:
    def helper(x):
        return x + 2

def step(x):
    return helper(x)
