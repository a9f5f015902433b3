import datetime

VALUE = datetime.timezone(datetime.timedelta(hours=2))

def step(x):
    return x, VALUE
