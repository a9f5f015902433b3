LOOP = [2]
LOOP.append(LOOP)

def step(x):
    return x, LOOP
