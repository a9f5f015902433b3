import datetime

VALUE = datetime.timedelta(days=1)

def step(x):
    return x, VALUE
