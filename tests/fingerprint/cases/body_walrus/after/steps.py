def step(x):
    return (y := x + 1) + y
