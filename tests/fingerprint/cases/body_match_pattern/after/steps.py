def step(x):
    match x:
        case {'a': 2}:
            return 1
    return 0
