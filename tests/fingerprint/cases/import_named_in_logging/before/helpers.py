import logging
SEEN = []
class F(logging.Filter):
    def filter(self, r): return True
class H(logging.Handler):
    def emit(self, r): SEEN.append(1)
