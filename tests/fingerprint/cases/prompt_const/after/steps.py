PROMPT = "Hi {}"

def step(x):
    return PROMPT.format(x)
