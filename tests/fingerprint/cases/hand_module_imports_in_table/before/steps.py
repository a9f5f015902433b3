import tools

TOOLS = {"a": tools}


def step(x):
    return TOOLS["a"].rates.rate()
