import pathlib

DATA = pathlib.Path(__file__).resolve().parent / 'other'

def step(x):
    return DATA
