"""
Draw what the terminal shows: run pfl on a pseudo-terminal and save its screen as SVG.

    python docs/picture.py docs/invoke.svg 'pfl invoke --id abc' 'pfl invoke --id abc --step c'
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text


def screen(command: str) -> str:
    """Everything that *command* writes to a terminal of 100 columns, as its last state shows it."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", "PATH": _path()}
    process = subprocess.Popen(command, shell=True, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    written = b""
    while True:
        try:
            if not (chunk := os.read(ours, 65_536)):
                break
        except OSError:  # The command has ended.
            break
        written += chunk
    os.close(ours)
    process.wait()
    lines: list[str] = []
    for line in written.decode().replace("\r\n", "\n").split("\n"):
        if "\x1b[1A" in line and lines:  # A spinner that stopped takes its line back.
            lines.pop()
        lines.append(_settled(line))
    return "\n".join(lines)


def _settled(line: str) -> str:
    """What is left of a line that a spinner wrote again and again."""
    for eraser in ("\x1b[2K", "\x1b[1A"):
        line = line.rsplit(eraser, 1)[-1]
    return line.rsplit("\r", 1)[-1].replace("\x1b[?25l", "").replace("\x1b[?25h", "")


def _path() -> str:
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])


def main(target: str, *commands: str) -> None:
    """Run the commands one after the other and save all of it."""
    console = Console(record=True, width=100, file=open(os.devnull, "w"), force_terminal=True, color_system="standard")
    for command in commands:
        console.print(Text(f"$ {command}", style="bold"))
        for line in screen(command).rstrip("\n").split("\n"):
            if line.strip():
                console.print(*AnsiDecoder().decode(line))
    console.save_svg(target, title="pfl")


if __name__ == "__main__":
    main(*sys.argv[1:])
