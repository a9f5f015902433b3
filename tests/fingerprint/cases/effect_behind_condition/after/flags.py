from contextlib import contextmanager
FLAG = 1
MODE = [1]
@contextmanager
def ctx(): yield 5
