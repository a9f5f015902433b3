import random
R2 = random.Random(0)
class Seeder:
    def __init__(self, n): self.n = n
    def apply(self): random.seed(self.n)
class AutoSeeder:
    def __init__(self, n): random.seed(n)
def seeded(n):
    random.seed(n)
    return lambda f: f
def seed_all(n): random.seed(n)
def seed_r2(n):
    R2.seed(n)
    return n
