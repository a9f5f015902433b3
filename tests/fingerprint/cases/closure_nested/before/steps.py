def outer(n):
    def middle(m):
        def step(x):
            return x * n * m
        return step
    return middle

step = outer(3)(2)
