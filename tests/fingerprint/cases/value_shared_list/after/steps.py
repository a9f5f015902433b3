A = [1]
B = A
B.append(3)

def step(x):
    return A
