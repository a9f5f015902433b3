"""Calls of humanize."""

import datetime as dt

import humanize

NUMBERS = (0, 1, 12, 999, 1_000, 12_400, 1_000_000, 8_100_000_000, -5, 3.5, "1234.5", None)


def sizes():
    """Sizes of files."""
    values = (0, 1, 999, 1024, 10**6, 10**9 * 28, 10**26)
    return [
        (
            humanize.naturalsize(value),
            humanize.naturalsize(value, binary=True),
            humanize.naturalsize(value, gnu=True, format="%.2f"),
        )
        for value in values
    ]


def numbers():
    """Numbers in words."""
    return [
        (humanize.intcomma(value), humanize.intword(value), humanize.apnumber(value))
        for value in NUMBERS
        if value is not None
    ]


def fractions():
    """Ordinals, fractions and powers."""
    return (
        [humanize.ordinal(value) for value in (1, 2, 3, 4, 11, 111, 1003)],
        [humanize.fractional(value) for value in (0.3, 1.3, 1 / 3, 7)],
        [humanize.scientific(value) for value in (0.3, 1000, 5.5e-9)],
    )


def deltas():
    """Spans of time."""
    values = (0, 1, 59, 60, 3_600, 86_400, 400_000, 2_678_400, 31_536_000, 99_999_999)
    spans = [dt.timedelta(seconds=value) for value in values]
    return [
        (
            humanize.naturaldelta(span),
            humanize.naturaldelta(span, months=False),
            humanize.precisedelta(span, minimum_unit="seconds"),
            humanize.precisedelta(span, suppress=["days"], format="%0.1f"),
        )
        for span in spans
    ]


def times():
    """Moments, relative to another."""
    now = dt.datetime(2024, 5, 6, 7, 8, 9)
    spans = (0, 1, 3_601, 90_000, -7_200, -(10**7))
    return [humanize.naturaltime(now - dt.timedelta(seconds=span), when=now) for span in spans]
