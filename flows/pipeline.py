"""The flows of the image; the first one is the default."""

from flows.a import a
from flows.audit.collect import collect
from flows.audit.measure import measure
from flows.audit.report import report
from flows.b import b
from flows.c import c
from flows.chat import answer, chat
from pfl import flow

meaning = flow("meaning", a, b, c, description="A number for the ID, in three steps.")
audit = flow(
    "audit",
    collect,
    measure,
    report,
    description="What an installed Python distribution consists of; the ID is its name.",
)
talk = flow("chat", chat, answer, description="A conversation with the ID, one turn per run.")

FLOWS = [meaning, audit, talk]
