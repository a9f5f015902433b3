"""Numbers over time as a picture: in the terminal, as SVG or as PNG."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime

from pfl.cli import compare, output
from pfl.handler.core.errors import InvalidRequestError


def draw(rows: Iterable[dict], path: str, file: str | None) -> None:
    """
    A line for each ID and step.

    Args:
        rows: Records with their values, newest first.
        path: Where the number is in a value.
        file: An ``.svg`` or ``.png``; None: the terminal.

    Raises:
        InvalidRequestError: There is no number, or no library to draw with.
    """
    lines: dict[str, tuple[list[datetime], list[float]]] = {}
    others = 0
    for row in reversed(list(rows)):
        number = compare.at(row.get("value"), path)
        if compare.is_number(number):
            times, numbers = lines.setdefault(f"{row['id']} {row['step']}", ([], []))
            times.append(datetime.fromisoformat(row["written_at"]).replace(tzinfo=None))
            numbers.append(number)
        else:
            others += "value" in row
    if not lines:
        raise InvalidRequestError(
            f"there is no number at {path} to draw", hint="--id abc --step b --path $.total"
        )
    if others:
        output.say(f"{others} values have no number at {path}, and are left out")
    if file is None:
        _terminal(lines, path)
    elif file.endswith((".svg", ".png")):
        _picture(lines, path, file)
    else:
        raise InvalidRequestError(
            f"--plot-to {file!r} is neither an .svg nor a .png file", hint="--plot-to history.svg"
        )


def _terminal(lines: dict, path: str) -> None:
    figure = output.optional("plotille", "plot").Figure()
    figure.width, figure.height = 70, 16
    # A colour says nothing that the legend does not, and pipes get none.
    figure.with_colors = os.isatty(1) and not os.environ.get("NO_COLOR")
    figure.x_label, figure.y_label = "time", path
    moments = [at for times, _ in lines.values() for at in times]
    form = "%H:%M:%S" if (max(moments) - min(moments)).days < 1 else "%y-%m-%d"
    figure.register_label_formatter(
        datetime, lambda at, chars, delta, left=False: f"{at:{form}}".ljust(chars)[:chars]
    )
    figure.register_label_formatter(
        float, lambda number, chars, delta, left=False: f"{number:.6g}".rjust(chars)[:chars]
    )
    for label, (times, numbers) in lines.items():
        figure.plot(times, numbers, label=output.printable(label))
    output.emit(figure.show(legend=True))


def _picture(lines: dict, path: str, file: str) -> None:
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
