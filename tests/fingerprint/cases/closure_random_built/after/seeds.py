import random
SEED = 3
N = 8
def build(): return random.Random(N)
