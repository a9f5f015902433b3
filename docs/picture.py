"""
Draw what the terminal shows: run pfl on a pseudo-terminal in a project, and save screens as SVG.

    python docs/picture.py          all of them, in about a minute
    python docs/picture.py why      one
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
WIDTH = 108  # The longest link fits.
PICTURES = {
    "invoke": ["pfl invoke --id abc", "pfl invoke --id abc"],
    "why": [
        "sed -i 's/420/421/' flows/a.py",
        "pfl plan --id abc",
        "pfl cache why --id abc --step a --diff",
        "pfl invoke --id abc",
    ],
    "inspect": ["pfl cache inspect --id abc --step b"],
    "history": [
        "sed -i 's/1234/420/' flows/a.py",
        "pfl invoke --id abc --engine direct",
        "pfl history ls --id abc --limit 4",
        "pfl history diff --id abc",
    ],
    "runs": ["pfl runs ls", "pfl doctor"],
}
_BETWEEN = "\x1e"


def screens(commands: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> list[str]:
    """
    What a terminal shows after each command, all typed into one bash, with colours.

    Args:
        commands: Each may have several lines.
        cwd: The working directory.
        environ: Added to the environment.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, WIDTH))
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    env = {**os.environ, "TERM": "xterm-256color", "PATH": path, **environ}
    env = {
        name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    script = "\n".join(f"printf '{_BETWEEN}'\n{command}" for command in commands)
    bash = subprocess.Popen(
        ["bash", "-c", script], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            if not (chunk := os.read(ours, 65_536)):
                break
        except OSError:  # The last command has ended.
            break
        written += chunk
    os.close(ours)
    bash.wait()
    return [_screen(each) for each in written.decode().split(_BETWEEN)[1:]]


def plain(screen: str) -> str:
    """A screen without colours and links."""
    return re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", screen)


def _screen(written: str) -> str:
    lines: list[str] = []
    for line in written.replace("\r\n", "\n").split("\n"):
        if "\x1b[1A" in line and lines:  # A spinner that stops removes its line.
            lines.pop()
        for eraser in ("\x1b[2K", "\x1b[1A", "\r"):
            line = line.rsplit(eraser, 1)[-1]
        lines.append(line.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    return "\n".join(line for line in lines if line.strip())


def draw(name: str, commands: Sequence[str], shown: Sequence[str]) -> None:
    """Save commands and their screens as ``docs/<name>.svg``."""
    console = Console(
        record=True,
        width=WIDTH,
        file=open(os.devnull, "w"),
        force_terminal=True,
        color_system="standard",
    )
    for command, screen in zip(commands, shown, strict=True):
        console.print(Text(f"$ {command}", style="bold"))
        if screen:
            console.print(*AnsiDecoder().decode(screen), sep="\n")
    svg = console.export_svg(title="pfl", unique_id="pfl")
    # Without a font to fetch. Each line has its length, so any font of fixed width will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S).replace(
        "Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"
    )
    (HERE / f"{name}.svg").write_text(
        "\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8"
    )


def main(wanted: Sequence[str]) -> None:
    """Run the commands of all pictures in order, and draw the wanted ones."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "pfl")
        shutil.copytree(
            HERE.parent / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__")
        )
        environ = {"HOME": place, "PREFECT_HOME": str(root / ".prefect"), "DO_NOT_TRACK": "1"}
        commands = [command for each in PICTURES.values() for command in each]
        try:
            shown = [
                screen.replace(str(root), "~/pfl") for screen in screens(commands, root, environ)
            ]
        finally:
            screens(["pfl server stop"], root, environ)
        for name, each in PICTURES.items():
            part, shown = shown[: len(each)], shown[len(each) :]
            if name in wanted or not wanted:
                draw(name, each, part)


if __name__ == "__main__":
    main(sys.argv[1:])
