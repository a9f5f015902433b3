WORDS = ['a']
WORDS += ['b']

def step(x):
    return x in WORDS
