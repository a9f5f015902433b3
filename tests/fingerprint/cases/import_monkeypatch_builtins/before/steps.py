import builtins

def size(x):
    return 1

builtins.size = size

def step(x):
    return size_of(x)

def size_of(x):
    return builtins.size(x)
