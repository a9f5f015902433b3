from .helpers import clean as tidy
