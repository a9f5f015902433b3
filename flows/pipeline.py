"""The flows of the image; the first is the one that runs when none is named."""

from pfl import flow

from flows.a import a
from flows.audit.collect import collect
from flows.audit.measure import measure
from flows.audit.report import report
from flows.b import b
from flows.c import c
from flows.chat import answer, chat

meaning = flow("meaning", a, b, c, description="A number about an ID, in three steps.")
audit = flow(
    "audit",
    collect,
    measure,
    report,
    description="What an installed Python distribution consists of; the ID is its name.",
)
talk = flow("chat", chat, answer, description="A conversation with the ID, a turn each run.")

FLOWS = [meaning, audit, talk]
