import datetime

VALUE = datetime.timedelta(days=2)

def step(x):
    return x, VALUE
