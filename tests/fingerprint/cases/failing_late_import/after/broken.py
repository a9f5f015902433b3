raise RuntimeError('b')
