import datetime

VALUE = datetime.timezone(datetime.timedelta(hours=1))

def step(x):
    return x, VALUE
