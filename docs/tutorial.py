"""
Run the commands of ``docs/tutorial.md`` and write their output into it; a test compares it.

    python docs/tutorial.py

In a ``console`` block, a line that starts with ``$ `` is a command, and the others are its output.
A ``python`` block that starts with ``# flows/…`` is written to that file when its turn comes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from picture import HERE, plain, screens

PAGE = HERE / "tutorial.md"
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", flags=re.S | re.M)
_VARIES = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]+", "UUID"),
    (r"\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d)?)?", "TIME"),
    (r"(?<![\d.])[0-9a-f]{8,64}(?![\d.])", "HEX"),
    (r"(?<= )(\d+(\.\d+)? m?s|-)(?= |$|,)", "TOOK"),
    (r"^(compute_ms +)\S+$", r"\1TOOK"),
    (r"127\.0\.0\.1:\d+", "HOST"),
    (r" +", " "),
)


def run(text: str, root: Path, environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """
    Type the commands of a page into one bash, in a project that starts with pfl's own flows.

    Args:
        text: The page.
        root: The directory to create.
        environ: Added to the environment.

    Returns:
        Each command, its output on the page, and its output now.
    """
    shutil.copytree(
        HERE.parent / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__")
    )
    commands: list[str] = []
    outputs: list[str] = []
    for kind, block in _BLOCK.findall(text):
        if kind == "console":
            for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.M):
                commands.append(command)
                outputs.append(printed)
        elif file := re.match(r"# (flows/\S+)\n", block):
            commands.append(f"cat > {file[1]} <<'PYTHON'\n{block}PYTHON")
            outputs.append("")
    screened = (
        plain(screen).replace(str(root), "~/pfl").splitlines()
        for screen in screens(commands, root, environ)
    )
    shown = ["".join(f"{line.rstrip()}\n" for line in lines) for lines in screened]
    return list(zip(commands, outputs, shown, strict=True))


def same(said: str, printed: str) -> tuple[str, str]:
    """
    Both texts without what differs from run to run.

    That is times, durations, keys, ports, and the width of columns.
    """
    texts = []
    for text in (said, printed):
        for pattern, name in _VARIES:
            text = re.sub(pattern, name, text, flags=re.M)
        texts.append(text)
    return texts[0], texts[1]


def main() -> None:
    """Write the present output into the page."""
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "pfl")
        environ = {"HOME": place, "PREFECT_HOME": f"{place}/.prefect", "DO_NOT_TRACK": "1"}
        try:
            ran = run(text, root, environ)
        finally:
            screens(["pfl server stop"], root, environ)
    at = 0
    for command, said, printed in ran:
        if not command.startswith("cat > "):
            before = f"$ {command}\n{said}"
            at = text.index(before, at)
            text = text[:at] + f"$ {command}\n{printed}" + text[at + len(before) :]
            at += len(command) + len(printed) + 3
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
