class Codes:
    OK = 2

def step(x):
    match x:
        case Codes.OK:
            return 1
    return 0
