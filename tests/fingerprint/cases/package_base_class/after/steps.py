from lib import Base

class Mine(Base):
    pass

def step(x):
    return Mine().f(x)
