from .sub import tidy
