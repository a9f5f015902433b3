A = type('A', (), {'rate': 3})

def step(x):
    return A.rate
