def make():
    words = ['a', 'c']
    def step(x):
        return x in words
    return step

step = make()
