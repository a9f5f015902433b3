from pfl import step as mark, flow
import random
def maker(rng):
    @mark
    def a(id: str) -> float:
        return rng.random()
    return a
step = maker(random.Random(4))
