"""The picture of a run: how long a hit takes, and what commands cost as a store grows; both on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _ROW = 900, 330, 830, 22
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#d62728", "#8c564b")
_NAMES = {"pfl-direct": "pfl", "prefect": "plain Prefect"}


def svg(run: dict) -> str:
    """The picture, as SVG text."""
    top, parts = 30, []
    for title, bars in (("cold hit of three steps, ms, logarithmic", _hits(run, "cold")), ("warm hit of three steps, ms, logarithmic", _hits(run, "warm"))):
        if bars:
            parts += _bars(title, bars, top)
            top += 34 + _ROW * len(bars)
    if len(run["scale"]) > 1:
        parts += _lines(run["scale"], top)
        top += 260
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top}" fill="#fff"/>', *parts, "</svg>\n"])


def _hits(run: dict, start: str) -> list[tuple[str, float]]:
    """Who answers a hit how fast, fastest first: the rivals' table where it was measured, else the first cell of the steps."""
    found = [(f"{row['tool']}, {row['store']}", row[f"{start}_ms"]) for row in run.get("rivals", ())]
    if not found and run["steps"]:
        cell = tuple(run["steps"][0][name] for name in ("workload", "store", "latency_ms"))
        found = [
            (_NAMES[row["engine"]], row["median_ms"])
            for row in run["steps"]
            if tuple(row[name] for name in ("workload", "store", "latency_ms")) == cell and row["engine"] in _NAMES and (row["case"], row["start"]) == ("hit", start)
        ]
    return sorted(found, key=lambda each: each[1])


def _bars(title: str, bars: Sequence[tuple[str, float]], top: float) -> Iterator[str]:
    least, most = _decades([ms for _, ms in bars])
    yield _text(_LEFT, top, title, weight="bold")
    for number, (name, ms) in enumerate(bars):
        y = top + 10 + _ROW * number
        end = _at(ms, least, most, _LEFT, _RIGHT - 60)
        colour = _COLOURS[0] if name.startswith("pfl") else "#b0b0b0"
        yield _text(_LEFT - 8, y + 13, name, anchor="end")
        yield f'<rect x="{_LEFT}" y="{y}" width="{max(1.0, end - _LEFT):.1f}" height="{_ROW - 6}" fill="{colour}"/>'
        yield _text(end + 6, y + 13, f"{ms:,.3g}" if ms < 1_000 else f"{ms:,.0f}")


def _lines(rows: Sequence[dict], top: float) -> Iterator[str]:
    """A line for each command, over the number of IDs."""
    names = list(rows[0]["operations"])
    values = [row["operations"][name]["median_ms"] for row in rows for name in names]
    sizes = [row["ids"] for row in rows]
    (low, high), (few, many) = _decades(values), _decades(sizes)
    bottom = top + 200
    yield _text(_LEFT, top, "what a command takes as the store grows, ms, logarithmic", weight="bold")
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = _at(10.0**exponent, low, high, bottom, top + 16)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, f"{10.0**exponent:g}", anchor="end")
    for size in sizes:
        yield _text(_at(size, few, many, _LEFT, _RIGHT), bottom + 18, f"{size:,} IDs", anchor="middle")
    for number, name in enumerate(names):
        points = [(_at(row["ids"], few, many, _LEFT, _RIGHT), _at(row["operations"][name]["median_ms"], low, high, bottom, top + 16)) for row in rows]
        colour = _COLOURS[number]
        yield f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
        yield f'<rect x="20" y="{top + 24 + 20 * number}" width="12" height="12" fill="{colour}"/>'
        yield _text(38, top + 35 + 20 * number, name)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    least, most = math.floor(math.log10(max(min(values), 1e-6))), math.ceil(math.log10(max(*values, 1e-6)))
    return 10.0**least, 10.0 ** max(most, least + 1)


def _at(value: float, least: float, most: float, start: float, end: float) -> float:
    share = math.log10(max(value, least) / least) / math.log10(most / least)
    return start + share * (end - start)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
