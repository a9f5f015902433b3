def make():
    count = 4
    def step(x):
        nonlocal count
        count += x
        return count
    return step

step = make()
