import json

def dumps(x):
    return str(x) + 'b'

json.dumps = dumps

def step(x):
    return json.dumps(x)
