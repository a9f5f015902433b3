import random
SEED = 4
N = 7
def build(): return random.Random(N)
