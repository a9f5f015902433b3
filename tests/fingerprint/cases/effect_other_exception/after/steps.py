import random, locale, decimal, os, warnings, sys, json
from flags import FLAG, MODE, ctx
if FLAG:
    random.seed(3)
with ctx() as c:
    random.seed(c)
for s in MODE:
    random.seed(s)
while FLAG > 5: pass
try:
    random.seed(FLAG)
except ValueError:
    random.seed(8)
CTX = decimal.getcontext()
CTX.prec = 5
OLD = locale.setlocale(locale.LC_ALL, "C")
PREV = random.seed(5)
sys.setrecursionlimit(999)
warnings.simplefilter("error")
_ = sys.set_int_max_str_digits(5000)
sys.setswitchinterval(0.01)
if (lim := sys.setrecursionlimit(5000)) is None: pass
def step(x): return random.random() / decimal.Decimal(x)
UNREL = 3
