from goog import two


def step(x):
    return two.f()
