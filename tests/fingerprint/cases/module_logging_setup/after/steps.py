import logging

logging.basicConfig(level=20)
log = logging.getLogger('a')

def step(x):
    log.info(x)
    return x
