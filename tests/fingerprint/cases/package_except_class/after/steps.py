from lib import B as Wrong


def step(x):
    try:
        return x()
    except Wrong:
        return 0
