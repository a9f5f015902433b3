def clean(x):
    return 1
