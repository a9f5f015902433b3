class A:
    class Meta:
        rate = 3

def step(x):
    return A.Meta.rate
