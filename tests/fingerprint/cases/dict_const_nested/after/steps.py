CONF = {"a": {"b": [1, {"c": 4}]}}

def step(x):
    return x * CONF["a"]["b"][1]["c"]
