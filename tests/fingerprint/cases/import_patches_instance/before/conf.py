import json
class C:
    n = 1
json.FLAG = C()
