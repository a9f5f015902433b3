import base

class P(base.Base):
    def f(self):
        return 2
