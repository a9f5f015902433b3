import ipaddress

VALUE = ipaddress.ip_network("10.0.0.0/9")

def step(x):
    return x, VALUE
