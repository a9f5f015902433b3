import helpers
import json


def step(x):
    return x
