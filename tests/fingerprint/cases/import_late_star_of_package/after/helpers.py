def clean(x):
    import pkg.deep.far as f
    return f.go(x)
