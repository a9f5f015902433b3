TABLE = {}

def register(name):
    def add(f):
        TABLE[name] = f
        return f
    return add
