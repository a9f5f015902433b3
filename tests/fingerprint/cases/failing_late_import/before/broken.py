raise RuntimeError('a')
