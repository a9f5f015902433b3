import base

class One(base.Base):
    n = 1
