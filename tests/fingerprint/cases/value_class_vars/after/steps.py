import types, contextlib, concurrent.futures, logging, weakref, csv, argparse, abc, numbers, codecs, operator
class K:
    def m(self): return KV
KV = 2
k = K()
M = types.MethodType(lambda s, a=2: a + AA, k)
AA = 3
NC = contextlib.nullcontext(7)
FUT = concurrent.futures.Future(); FUT.set_result(8)
FMT = logging.Formatter("%(message)s-a")
LA = logging.LoggerAdapter(logging.getLogger("q"), {"e": 9})
WM = weakref.WeakMethod(k.m)
WS = weakref.WeakSet([K])
class Dia(csv.excel): delimiter = ";"
class Num(abc.ABC): pass
Num.register(int)
numbers.Number.register(K)
NEW = types.new_class("NEW", (K,), {}, lambda ns: ns.update(z=10))
PAR = argparse.ArgumentParser(); PAR.add_argument("--x", default=11)
SUP = super(bool, True)
CI = codecs.lookup("utf-8")
CM = classmethod(lambda c: 12)
VARS = vars(K)
def step(x): return M(), NC, FUT.result(), FMT, LA, WM, WS, Dia, issubclass(int, Num), NEW, PAR, SUP, CI, CM, VARS, isinstance(k, numbers.Number)
