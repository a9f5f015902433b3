import pathlib

DATA = pathlib.Path(__file__).resolve().parent / 'data'

def step(x):
    return DATA
