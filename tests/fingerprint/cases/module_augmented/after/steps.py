WORDS = ['a']
WORDS += ['c']

def step(x):
    return x in WORDS
