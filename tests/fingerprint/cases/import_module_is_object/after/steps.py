import sys
import store
def step(x): return store.VALUE, store.f(x)
