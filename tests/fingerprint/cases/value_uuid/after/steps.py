import uuid

VALUE = uuid.UUID(int=2)

def step(x):
    return x, VALUE
