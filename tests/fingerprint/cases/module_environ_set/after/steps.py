import os
import time

os.environ['TZ'] = 'CET'

def step(x):
    return time.localtime(x)
