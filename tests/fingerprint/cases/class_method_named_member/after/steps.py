class Club:
    def _member_fee(self): return 31
    def fee(self): return self._member_fee()
def step(): return Club().fee()
