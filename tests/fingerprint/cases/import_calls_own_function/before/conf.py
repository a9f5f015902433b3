import random
def init():
    random.seed(3)
init()
