LOOP = [1]
LOOP.append(LOOP)
D = {}
D['d'] = D

def step(x):
    return x, LOOP, D
