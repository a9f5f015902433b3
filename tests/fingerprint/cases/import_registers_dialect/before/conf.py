import csv
csv.register_dialect("mine", delimiter=";")
