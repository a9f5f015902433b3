import importlib

_PARTS = {"area": ".plane", "volume": ".solid"}


def __getattr__(name):
    if name not in _PARTS:
        raise AttributeError(name)
    return getattr(importlib.import_module(_PARTS[name], __name__), name)
