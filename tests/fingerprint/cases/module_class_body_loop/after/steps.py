class A:
    table = {}
    for i in range(3):
        table[i] = i * 3

def step(x):
    return A.table[x]
