import base
import plug  # noqa

def step(x):
    return [c().f() for c in base.Base.__subclasses__()]
