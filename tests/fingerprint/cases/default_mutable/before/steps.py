def step(x, words=['a']):
    return x in words
