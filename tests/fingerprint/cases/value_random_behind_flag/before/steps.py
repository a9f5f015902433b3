import random
FLAG = False
if FLAG:
    R = random.Random(3)
else:
    R = random.Random(4)
for S in (1, 2):
    Q = random.Random(S)
with open(__file__):
    P = random.Random(9)
def step(x): return R.random(), Q.random(), P
