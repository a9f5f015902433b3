WORDS = {"a", "b", "c"}

def step(x):
    return x in WORDS
