import argparse

NS = argparse.Namespace(a=2)

def step(x):
    return NS.a
