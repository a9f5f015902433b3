import csv, conf
def step(x):
    return list(csv.reader(x, "mine"))
