import textwrap

WRAP = textwrap.TextWrapper(width=20, drop_whitespace=False)

def step(x):
    return WRAP.fill(x)
