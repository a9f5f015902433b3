"""
Write what every command says of itself into ``docs/commands.md``; a test fails where the two differ.

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

This page is what `--help` says, written by `python docs/reference.py`. What the commands are for is in the README, and how they go
together in the [tutorial](tutorial.md).

"""


def text() -> str:
    """The page: a section for each command, in the order in which ``pfl --help`` lists them."""
    helps = dict(_helps(typer.main.get_command(app), "pfl", None))
    contents = "".join(f"- [`{name}`](#{name.replace(' ', '-')})\n" for name in helps)
    sections = "".join(f"\n## {name}\n\n```text\n{told}\n```\n" for name, told in helps.items())
    return _HEAD + contents + sections


def _helps(command, name: str, parent) -> Iterator[tuple[str, str]]:
    # The width is said here, so that neither the terminal nor COLUMNS changes the page.
    with command.make_context(
        name.rpartition(" ")[2], [], parent, resilient_parsing=True, terminal_width=_WIDTH
    ) as context:
        yield name, command.get_help(context).rstrip()
        for each, below in getattr(command, "commands", {}).items():
            yield from _helps(below, f"{name} {each}", context)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
