import json
import os.path
from collections import OrderedDict

RATE = 3

def clean(x):
    return x + 1
