RATE = 3

if __name__ == '__main__':
    RATE = 9

def step(x):
    return x * RATE
