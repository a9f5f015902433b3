class Kind:
    rate = 3
