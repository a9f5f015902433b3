import base
import one, two  # noqa

def step(x):
    return {c.__name__: c for c in base.Base.__subclasses__()}
