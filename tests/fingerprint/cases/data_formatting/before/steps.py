import json
import os

with open(os.path.join(os.path.dirname(__file__), 'conf.json')) as f:
    CONF = json.load(f)

def step(x):
    return CONF['a']
