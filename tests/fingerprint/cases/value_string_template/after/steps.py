from string import Template

VALUE = Template("b $x")

def step(x):
    return x, VALUE
