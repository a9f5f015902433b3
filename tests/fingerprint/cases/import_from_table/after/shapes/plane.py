def area(x):
    return x * x * 3
