import sqlite3, conf
def step(x):
    return sqlite3.connect(":memory:").execute("select ?", [conf.P()]).fetchone()
