import pathlib

ROOT = pathlib.Path(__file__).resolve().parent
DATA = ROOT / 'data'
NAMES = [str(DATA / 'a'), f'sqlite:///{ROOT}/db']

def step(x):
    return DATA, NAMES
