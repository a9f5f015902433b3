import random
class Sampler:
    rng = random.Random(1)
    def __init__(self, seed): self.own = random.Random(seed); self.pool = {"x": [random.Random(seed + 1)]}
    def draw(self): return self.own.random(), self.rng.random(), self.pool
def build(seed=2): return Sampler(seed)
S = build()
T = {"s": build(5)}
class Holder:
    inner = Sampler(7)
def step(x): return S.draw(), T["s"].draw(), Holder.inner.draw()
