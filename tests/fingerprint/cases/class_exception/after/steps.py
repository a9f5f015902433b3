class Bad(Exception):
    def __str__(self):
        return 'worse'

def step(x):
    raise Bad(x)
