import string
string.digits = "123"
