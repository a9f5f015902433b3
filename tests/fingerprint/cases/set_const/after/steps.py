WORDS = {"a", "b", "d"}

def step(x):
    return x in WORDS
