import logging

logging.basicConfig(level=10)
log = logging.getLogger('a')

def step(x):
    log.info(x)
    return x
