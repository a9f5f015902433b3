"""Numbers over time as a picture: in the terminal, as SVG or as PNG."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from ..handler.core.errors import InvalidRequestError
from . import compare, output

# Times and numbers of each line; no library has a type for such times.
Lines = dict[str, tuple[list[Any], list[float]]]


def draw(rows: Iterable[Mapping[str, Any]], path: str, file: str | None) -> None:
    """
    Draw a line for each ID and step.

    Args:
        rows: Records with their values, newest first.
        path: The path to the number in a value.
        file: An ``.svg`` or ``.png`` file; the terminal if None.

    Raises:
        InvalidRequestError: No value has a number there, or a library to draw with is missing.
    """
    if file is not None and not file.endswith((".svg", ".png")):
        raise InvalidRequestError(
            f"invalid --plot-to {file!r}",
            why="it is neither an .svg nor a .png file",
            hint="--plot-to history.svg",
        )
    lines: Lines = {}
    others = 0
    for row in reversed(list(rows)):
        number = compare.at(row.get("value"), path)
        if not compare.is_number(number):
            others += "value" in row
            continue
        times, numbers = lines.setdefault(f"{row['id']} {row['step']}", ([], []))
        # As the local clock shows it: neither library supports offsets.
        shown = datetime.fromisoformat(output.local_time(row["written_at"]))
        times.append(shown.replace(tzinfo=None))
        numbers.append(number)
    if not lines:
        raise InvalidRequestError(
            f"no number at {path} in any value", hint="--id abc --step b --path '$.total'"
        )
    if others:
        output.say(f"skipped {output.counted(others, 'value')} without a number at {path}")
    if file is None:
        _draw_in_terminal(lines, path)
    else:
        _draw_to_file(lines, path, file)


def _draw_in_terminal(lines: Lines, path: str) -> None:
    figure = output.optional("plotille", "plot").Figure()
    figure.width = 70
    figure.height = 16
    figure.with_colors = output.has_colour(sys.stdout)
    figure.x_label = "time"
    figure.y_label = output.printable(path)
    for label, (times, numbers) in lines.items():
        figure.plot(times, numbers, label=output.printable(label))
    output.write(figure.show(legend=True))


def _draw_to_file(lines: Lines, path: str, file: str) -> None:
    output.optional("matplotlib", "plot").use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for label, (times, numbers) in lines.items():
        axes.plot(times, numbers, marker="o", label=label.replace("$", r"\$"))
    axes.set_ylabel(path.replace("$", r"\$"))
    axes.legend()
    figure.autofmt_xdate()
    figure.savefig(file)
    pyplot.close(figure)
    output.say(f"drawn to {file}")
