"""
Write the help of every command into ``docs/commands.md``; a test fails if they differ.

    python docs/reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from pfl.cli.main import app

PAGE = Path(__file__).with_name("commands.md")
_WIDTH = 100
_HEAD = """\
# Every command

This page is the output of `--help`, written by `python docs/reference.py`. For an overview, see
the [README](../README.md#commands); for an introduction, see the [tutorial](tutorial.md).

## Exit codes

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | unexpected error (`PFL_TRACEBACK=1` prints the traceback), or you answered no |
| 1 | `pfl history diff` found a difference |
| 2 | wrong usage or invalid input |
| 3 | not found, or a miss with `--cached-only` |
| 4 | a step failed |
| 5 | a service does not answer: Prefect, the store, AWS |
| 6 | stored data is damaged |
| 130 | interrupted by Ctrl-C or SIGTERM |

## Commands

"""


def text() -> str:
    """The page: a section for each command, in the order in which ``pfl --help`` lists them."""
    helps = dict(_helps(typer.main.get_command(app), "pfl", None))
    contents = "".join(f"- [`{name}`](#{name.replace(' ', '-')})\n" for name in helps)
    sections = "".join(f"\n## {name}\n\n```text\n{help}\n```\n" for name, help in helps.items())
    return _HEAD + contents + sections


def _helps(command, name: str, parent) -> Iterator[tuple[str, str]]:
    # A fixed width, so that neither the terminal nor COLUMNS changes the page.
    with command.make_context(
        name.rpartition(" ")[2], [], parent, resilient_parsing=True, terminal_width=_WIDTH
    ) as context:
        yield name, command.get_help(context).rstrip()
        for each, below in getattr(command, "commands", {}).items():
            yield from _helps(below, f"{name} {each}", context)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
