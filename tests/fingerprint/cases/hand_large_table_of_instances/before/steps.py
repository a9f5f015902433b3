class Row(tuple):
    def __new__(cls, *parts):
        return tuple.__new__(cls, parts)


KIND = Row("a", Row("b"))
TABLE = {f"key {n}": KIND for n in range(1_000)}
TABLE["key 7"] = Row("c")


def step(x):
    return TABLE[x]
