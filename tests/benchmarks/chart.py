"""The chart of a run: the time of a hit and of commands as a store grows, on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _ROW = 940, 370, 830, 22
_NAMES = {"pfl-direct": "pfl", "prefect": "plain Prefect"}


def svg(run: dict) -> str:
    """The chart, as SVG text."""
    charts = [
        (f"{start} hit of three steps, ms, logarithmic", _hits(run, start))
        for start in ("cold", "warm")
    ]
    if len(run["scale"]) > 1:
        operations = run["scale"][0]["operations"]
        bars = [
            (f"pfl {name}, {row['ids']:,} IDs", row["operations"][name]["median_ms"])
            for name in operations
            for row in run["scale"]
        ]
        charts.append(("what a command takes as the store grows, ms, logarithmic", bars))
    top, parts = 30, []
    for title, bars in charts:
        if bars:
            parts += _bars(title, bars, top)
            top += 34 + _ROW * len(bars)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join(
        [head, f'<rect width="{_WIDTH}" height="{top}" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _hits(run: dict, start: str) -> list[tuple[str, float]]:
    """
    The time of a hit by name, fastest first.

    The rivals' table if they were measured, otherwise the first cell of the steps.
    """
    found = [
        (f"{row['tool']}, {row['store']}", row[f"{start}_ms"]) for row in run.get("rivals", ())
    ]
    if not found and run["steps"]:
        wanted = {name: run["steps"][0][name] for name in ("workload", "store", "latency_ms")}
        wanted |= {"case": "hit", "start": start}
        for row in run["steps"]:
            if row["engine"] in _NAMES and wanted.items() <= row.items():
                found.append((_NAMES[row["engine"]], row["median_ms"]))
    return sorted(found, key=lambda each: each[1])


def _bars(title: str, bars: Sequence[tuple[str, float]], top: float) -> Iterator[str]:
    exponents = [math.log10(max(ms, 1e-6)) for _, ms in bars]
    least = math.floor(min(exponents))
    decades = max(1, math.ceil(max(exponents)) - least)
    yield _text(_LEFT, top, title, weight="bold")
    for number, ((name, ms), exponent) in enumerate(zip(bars, exponents, strict=True)):
        y = top + 10 + _ROW * number
        width = max(1.0, (_RIGHT - _LEFT) * (exponent - least) / decades)
        colour = "#1f77b4" if name.startswith("pfl") else "#b0b0b0"
        yield _text(_LEFT - 8, y + 13, name, anchor="end")
        yield f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
        yield _text(_LEFT + width + 6, y + 13, f"{ms:,.3g}" if ms < 1_000 else f"{ms:,.0f}")


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place}>{escape(text)}</text>"
