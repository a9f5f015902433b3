LOOP = [1]
LOOP.append(LOOP)

def step(x):
    return x, LOOP
