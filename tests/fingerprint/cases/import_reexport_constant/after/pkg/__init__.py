from .helpers import RATE
