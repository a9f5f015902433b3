def clean(x):
    return 2
