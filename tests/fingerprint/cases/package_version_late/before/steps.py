def step(x):
    import lib
    return lib.f(x)
