import configparser
import os

CONF = configparser.ConfigParser()
CONF.read(os.path.join(os.path.dirname(__file__), 'c.ini'))

def step(x):
    return CONF['a']['b']
