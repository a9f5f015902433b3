from lib import A as Wrong


def step(x):
    try:
        return x()
    except Wrong:
        return 0
