import logging


class Shout(logging.Filter):
    def filter(self, record):
        setattr(record, "msg", record.msg + "?")
        return True


OUT = logging.StreamHandler()
OUT.addFilter(Shout())


def step(x):
    record = logging.LogRecord("a", 20, "p", 1, x, (), None)
    OUT.filter(record)
    return record.msg
