from .inner import f
