import uuid

VALUE = uuid.UUID(int=1)

def step(x):
    return x, VALUE
