import ipaddress

VALUE = ipaddress.ip_network("10.0.0.0/8")

def step(x):
    return x, VALUE
