import importlib
from importlib import import_module as load
get = getattr
NAME = "late2"
PKG = "pkg"
MODS = ["late4"]
def step(x):
    a = load("late1").A
    b = importlib.import_module(NAME).B
    c = importlib.import_module("pkg." + "late3")
    d = get(c, "Q")
    e = __import__("pkg.late3").late3.R
    f = importlib.import_module(".late5", PKG).S
    g = importlib.import_module(".late5", package="pkg").T
    return a + b + d + e + f + g
