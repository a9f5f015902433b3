import random
SEED = 3
N = 7
def build(): return random.Random(N)
