import datetime

ZONE = datetime.timezone(datetime.timedelta(0), 'A')

def step(x):
    return ZONE.tzname(None)
