import logging


class Loud(logging.Formatter):
    def format(self, record):
        return "A" + record.msg


OUT = logging.StreamHandler()
OUT.setFormatter(Loud())


def step(x):
    return OUT.format(logging.LogRecord("a", 20, "p", 1, x, (), None))
