from urllib.parse import urlsplit

URL = urlsplit('http://a/b')

def step(x):
    return URL.path
