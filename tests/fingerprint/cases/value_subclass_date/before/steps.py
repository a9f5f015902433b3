import datetime
class A(datetime.date):
    def extra(self):
        return 1
V = A(2020, 1, 1)
def step(x):
    return V
