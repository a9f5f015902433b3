"""Calls of python-tabulate."""

from tabulate import simple_separated_format, tabulate

ROWS = [["spam", 41.9999, None], ["eggs", "451.0", "x"], ["long text, for a column", -3, "ä"]]


def formats():
    """One table in several formats."""
    names = ("plain", "grid", "pipe", "html", "latex", "rst", "fancy_grid", "jira", "tsv")
    return [tabulate(ROWS, ["a", "b", "c"], tablefmt=name) for name in names]


def aligned():
    """Numbers and missing values."""
    return tabulate(
        ROWS, floatfmt=".2f", missingval="?", numalign="right", stralign="center", showindex=True
    )


def records():
    """Rows from dicts."""
    rows = [{"a": 1, "b": "two\nlines"}, {"a": 1000000, "b": True}]
    return tabulate(rows, headers="keys", tablefmt="simple"), tabulate({"x": [1, 2], "y": "ab"})


def wrapped():
    """Long cells, and a format of its own."""
    text = "one two three four five six seven"
    return (
        tabulate([[text, 1]], maxcolwidths=[10, None], tablefmt="grid"),
        tabulate(ROWS, tablefmt=simple_separated_format("||")),
    )
