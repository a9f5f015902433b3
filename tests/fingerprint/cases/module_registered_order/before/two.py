import base

class Two(base.Base):
    n = 2
