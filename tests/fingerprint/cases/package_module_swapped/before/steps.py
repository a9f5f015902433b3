import lib.utils as tool


def step(x):
    return tool.run(x)
