import textwrap

WRAP = textwrap.TextWrapper(width=20, drop_whitespace=True)

def step(x):
    return WRAP.fill(x)
