import ctypes
class P(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int)]
V = P(1)
def step(x):
    return V.a
