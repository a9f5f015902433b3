import plugins
from base import Base
def every(c):
    return c.__subclasses__()
def step(x):
    return [c().run() for c in every(Base)]
