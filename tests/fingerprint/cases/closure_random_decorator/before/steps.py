import random, queue
def deco(rng):
    def d(f):
        def w(self): return f(self), rng.random()
        return w
    return d
class K:
    @deco(random.Random(3))
    def go(self): return 1
    tool = staticmethod(deco(random.Random(4))(lambda s: 2))
    @property
    def p(self): return Q
Q = queue.Queue(); Q.put(5)
def step(x): return K().go(), K.tool(1), K().p
