import decimal
class A(decimal.Decimal):
    def extra(self):
        return 1
V = A("2")
def step(x):
    return V
