"""Calls of dateparser."""

from datetime import datetime

import dateparser
from dateparser.search import search_dates

NOW = datetime(2024, 5, 6, 7, 8, 9)
SETTINGS = {"RELATIVE_BASE": NOW, "TIMEZONE": "UTC"}


def absolute():
    """Dates."""
    texts = ("12/12/12", "Fri, 12 Dec 2014 10:55:50", "22 Décembre 2010", "2016-01-31T10:00:00Z")
    return [dateparser.parse(text, settings=SETTINGS) for text in texts]


def relative():
    """Spans before and after a moment."""
    texts = ("1 hour ago", "yesterday 10:00", "in 2 weeks", "hace 3 días", "now")
    return [dateparser.parse(text, settings=SETTINGS) for text in texts]


def options():
    """Orders of a date, and time zones."""
    return (
        dateparser.parse("10/11/12", settings={"DATE_ORDER": "YMD"}),
        dateparser.parse("March", settings={**SETTINGS, "PREFER_DATES_FROM": "future"}),
        dateparser.parse("10:00 EST", languages=["en"], settings=SETTINGS),
        dateparser.parse("2014", date_formats=["%Y"]),
    )


def search():
    """Dates in a text."""
    text = "The first was on July 4, 2013, the next two days later."
    return search_dates(text, languages=["en"], settings=SETTINGS)
