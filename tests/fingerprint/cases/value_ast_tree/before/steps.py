import argparse

NS = argparse.Namespace(a=1)

def step(x):
    return NS.a
