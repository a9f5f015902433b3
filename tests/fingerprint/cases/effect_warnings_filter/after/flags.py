from contextlib import contextmanager
FLAG = 0
MODE = [1]
@contextmanager
def ctx(): yield 5
