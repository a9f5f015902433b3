import os, sys, json, random, math, logging, re, collections
import argparse
parser = argparse.ArgumentParser(description="d")
parser.add_argument("--a")
sub = parser.add_subparsers()
sub.add_parser("x")
args_cache = collections.OrderedDict()
args_cache.update(a=1)
args_cache["z"] = 2
logger = logging.getLogger("n")
logger.setLevel(10)
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(message)s"))
logger.addHandler(handler)
data = json.loads('{"a": [1]}')
data["b"] = 2
data["a"].append(3)
match = re.match("a", "ab")
words = sorted({"b", "a"}, key=len)
def unused(): random.seed(3)
def unused2():
    os.environ["A"] = "1"
    sys.setrecursionlimit(99)
UNREAD = unused2
lst = [i for i in range(3)]
lst.append(4)
class Thing:
    items = []
    items.append(1)
    table = {}
    table["a"] = 2
    def set_x(self, v): self.x = v
thing = Thing()
thing.set_x(5)
thing.y = 6
def step(x): return math.sqrt(x)
