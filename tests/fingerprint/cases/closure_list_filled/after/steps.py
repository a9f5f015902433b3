def make():
    xs = []
    def add(v): xs.append(v)
    def get(): return sum(xs)
    return add, get
add, get = make()
add(4)
def step(x):
    return get()
