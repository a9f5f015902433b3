from urllib.parse import urlsplit

URL = urlsplit('http://a/c')

def step(x):
    return URL.path
