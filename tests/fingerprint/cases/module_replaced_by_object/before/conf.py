import sys
class M:
    rate = 3
sys.modules[__name__] = M()
