import helpers

TABLE = {'h': helpers}

def step(x):
    return TABLE['h'].clean(x)
