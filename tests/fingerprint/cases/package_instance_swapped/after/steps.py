from lib import down as move


def step(x):
    return move()
