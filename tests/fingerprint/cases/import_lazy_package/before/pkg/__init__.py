def __getattr__(name):
    from . import helpers
    return getattr(helpers, name)
