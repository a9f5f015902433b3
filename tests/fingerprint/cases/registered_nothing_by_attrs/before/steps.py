import attrs


@attrs.define
class Mine:
    x: int = 1


def step(x):
    return x
