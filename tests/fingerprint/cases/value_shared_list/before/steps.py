A = [1]
B = A
B.append(2)

def step(x):
    return A
