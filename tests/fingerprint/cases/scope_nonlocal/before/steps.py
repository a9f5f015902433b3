def make():
    count = 3
    def step(x):
        nonlocal count
        count += x
        return count
    return step

step = make()
