def f(y:
