_heavy = None


def load():
    global _heavy
    if _heavy is None:
        import heavy as _heavy
    return _heavy


def step(x):
    return load().run()
