A = 0x10
B = """x"""
C = 1_000
D = 5e-1

def step(x):
    return x, A, B, C, D
