def step(x):
    match x:
        case {'a': 1}:
            return 1
    return 0
