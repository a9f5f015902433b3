"""The flows of the image; the first is the one that runs when none is named."""

from flows.a import a
from flows.b import b
from flows.c import c
from handler import flow

meaning = flow("meaning", a, b, c, description="A number about an ID, in three steps.")

FLOWS = [meaning]
