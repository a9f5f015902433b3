from string import Template

VALUE = Template("a $x")

def step(x):
    return x, VALUE
