import sys
class M:
    rate = 4
sys.modules[__name__] = M()
