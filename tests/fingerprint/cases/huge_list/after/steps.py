NUMBERS = list(range(1_000_000)) + [2]

def step(x):
    return NUMBERS[x]
