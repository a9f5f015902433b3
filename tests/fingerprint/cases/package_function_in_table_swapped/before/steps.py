import lib

TABLE = {'f': lib.echo}


def step(x):
    return TABLE['f'](x)
