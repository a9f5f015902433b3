A = type('A', (), {'rate': 4})

def step(x):
    return A.rate
