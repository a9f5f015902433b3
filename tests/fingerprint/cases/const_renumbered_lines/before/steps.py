TEXT = """a
  b"""

def step(x):
    return TEXT + x
