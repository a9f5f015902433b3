import json
class C:
    n = 2
json.FLAG = C()
