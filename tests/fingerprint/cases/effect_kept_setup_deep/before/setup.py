import random, decimal
SEED = 4
def prepare():
    random.seed(SEED)
    return True
def quiet(x): return x + 1
def chain(): return deeper()
def deeper():
    ctx = decimal.getcontext()
    ctx.prec = 7
    return 1
