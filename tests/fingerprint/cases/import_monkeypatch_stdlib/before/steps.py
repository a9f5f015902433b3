import json

def dumps(x):
    return str(x) + 'a'

json.dumps = dumps

def step(x):
    return json.dumps(x)
