def make():
    words = ['a', 'b']
    def step(x):
        return x in words
    return step

step = make()
