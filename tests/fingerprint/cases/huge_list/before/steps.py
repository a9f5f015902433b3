NUMBERS = list(range(1_000_000)) + [1]

def step(x):
    return NUMBERS[x]
