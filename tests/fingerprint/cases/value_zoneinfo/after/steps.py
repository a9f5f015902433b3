import datetime

ZONE = datetime.timezone(datetime.timedelta(0), 'B')

def step(x):
    return ZONE.tzname(None)
