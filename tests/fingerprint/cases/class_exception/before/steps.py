class Bad(Exception):
    def __str__(self):
        return 'bad'

def step(x):
    raise Bad(x)
