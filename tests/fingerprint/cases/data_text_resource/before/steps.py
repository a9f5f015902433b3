import importlib.resources

TEXT = importlib.resources.files('pkg').joinpath('prompt.txt').read_text()

def step(x):
    return TEXT
