try:
    import nowhere_fast as impl
except ImportError:
    import slow as impl
def step(x):
    return impl.run(x)
