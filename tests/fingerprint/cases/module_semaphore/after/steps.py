import threading

GATE = threading.BoundedSemaphore(4)

def step(x):
    with GATE:
        return x
