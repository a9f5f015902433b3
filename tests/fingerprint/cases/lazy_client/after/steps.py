CLIENT = None

def client():
    global CLIENT
    if CLIENT is None:
        CLIENT = object()
    return CLIENT

def step(x):
    return client()
