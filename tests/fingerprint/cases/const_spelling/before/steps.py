A = 16
B = 'x'
C = 1000
D = 0.5

def step(x):
    return x, A, B, C, D
