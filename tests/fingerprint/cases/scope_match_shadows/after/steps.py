rest = 4

def step(x):
    match x:
        case [1, *rest]:
            return rest
        case {'a': value, **rest}:
            return rest
