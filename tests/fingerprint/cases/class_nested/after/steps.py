class A:
    class Meta:
        rate = 4

def step(x):
    return A.Meta.rate
