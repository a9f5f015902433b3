if False:
    class A:
        rate = 3
else:
    class A:
        rate = 4

def step(x):
    return A.rate
