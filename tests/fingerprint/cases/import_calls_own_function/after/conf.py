import random
def init():
    random.seed(4)
init()
