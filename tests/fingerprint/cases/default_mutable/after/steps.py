def step(x, words=['b']):
    return x in words
