import random
random.seed(3)
UNREL = 1
