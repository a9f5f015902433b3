import random
random.seed(4)
UNREL = 1
