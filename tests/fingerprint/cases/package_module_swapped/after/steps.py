import lib.term as tool


def step(x):
    return tool.run(x)
