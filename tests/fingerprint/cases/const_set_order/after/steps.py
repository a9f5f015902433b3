WORDS = {"c", "b", "a"}

def step(x):
    return x in WORDS
