class Conf:
    pass
for name, value in {"a": 1, "b": 2}.items():
    setattr(Conf, name, value)
def step(x):
    return Conf.a + Conf.b
