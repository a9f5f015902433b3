def step(x):
    return (
        "abc"
        "def"
    ) + x
