import pkg


def step(x):
    return vars(pkg)["one"].run()
