import tomllib
from pathlib import Path

CONF = tomllib.loads((Path(__file__).parent / 'conf.toml').read_text())

def step(x):
    return CONF['a']
