error = 3

def step(x):
    try:
        return int(x)
    except ValueError as error:
        return str(error)
