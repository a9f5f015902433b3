import sqlite3
class P: pass
sqlite3.register_adapter(P, lambda p: 2)
