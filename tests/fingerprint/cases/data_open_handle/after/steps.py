import os

HANDLE = open(os.path.join(os.path.dirname(__file__), 'a.txt'))

def step(x):
    return HANDLE.fileno()
