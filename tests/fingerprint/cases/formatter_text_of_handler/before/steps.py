import logging

OUT = logging.StreamHandler()
OUT.setFormatter(logging.Formatter("a: %(message)s"))


def step(x):
    return OUT.format(logging.LogRecord("a", 20, "p", 1, x, (), None))
