import json, conf
def step(x):
    return json.FLAG.n
