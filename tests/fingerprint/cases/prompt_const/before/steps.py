PROMPT = "Hello {}"

def step(x):
    return PROMPT.format(x)
