CONF = {"a": {"b": [1, {"c": 3}]}}

def step(x):
    return x * CONF["a"]["b"][1]["c"]
