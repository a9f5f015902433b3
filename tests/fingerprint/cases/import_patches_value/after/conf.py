import string
string.digits = "124"
