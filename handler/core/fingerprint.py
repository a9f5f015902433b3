"""stub"""
import contextlib, hashlib, inspect
class Reads:
    files=set(); env=set()
@contextlib.contextmanager
def record_reads():
    yield Reads()
class F: pass
def fingerprint(f):
    f=getattr(f,"function",f); r=F(); r.digest=hashlib.sha256(inspect.getsource(f).encode()).hexdigest(); r.files=frozenset([inspect.getsourcefile(f)]); r.packages=frozenset(); r.parts=();r.opaque=(); return r
