NS = {}
SRC = "def f(x): return x + 2"
exec(SRC, NS)
g = eval("lambda v: v * 2")
exec("def h(x):\n    return x - 1")
def mk(op):
    ns = {}
    exec(f"def k(x): return x {op} 3", ns)
    return ns["k"]
k = mk("+")
def step(x): return NS["f"](x), g(x), h(x), k(x)
