import attrs


@attrs.define
class Mine:
    x: int = 2


def step(x):
    return x
