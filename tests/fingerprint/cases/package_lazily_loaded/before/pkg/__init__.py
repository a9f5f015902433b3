import lazy

__getattr__ = lazy.attach(__name__, {"rate": "rates"})
