class Kind:
    rate = 4
