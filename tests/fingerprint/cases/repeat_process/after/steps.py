WORDS = {"a", "b", "c", None, 1, (2, "x")}
OBJ = object()

def step(x):
    return x in WORDS, OBJ
