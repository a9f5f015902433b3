"""
How long a fingerprint takes, compared with importing a generated project.

Run ``python tests/fingerprint/bench.py [MODULES]``.

Each module has a constant, a table, a class and three helpers, and imports two others; each step
reaches about a dozen modules. Times are processor time, the best of five fresh processes; the ratio
is what can be compared between machines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent

MODULE = '''
"""Module {n}."""
import re
from dataclasses import dataclass

{imports}

RATE = {n}
TABLE = {{"a": [1, 2, {n}], "b": {{"c": "text {n}"}}}}
WORD = re.compile("[a-z]+{n}")


@dataclass
class Conf:
    """Doc."""

    rate: int = RATE
    name: str = "n{n}"

    def scale(self, x):
        """Doc."""
        return x * self.rate


def tidy(x):
    """Doc."""
    return WORD.sub("", str(x)) + TABLE["b"]["c"]


def total(xs):
    return sum(Conf().scale(x) for x in xs if x > RATE)


def run(x):
    return tidy(x), total([x]){calls}
'''

MEASURE = """
import json, sys, time
sys.path[:0] = [{repository!r}, {folder!r}]
start = time.process_time()
for n in range({modules}):
    __import__(f"project.m{{n}}")
imported = time.process_time() - start
import project.steps as steps
start = time.process_time()
from pfl.handler.core.fingerprint import fingerprint
loaded = time.process_time() - start
times, parts = [], 0
for function in (steps.s0, steps.s0, *steps.ALL, *steps.ALL):
    start = time.process_time()
    parts = max(parts, len(fingerprint(function).parts))
    times.append(time.process_time() - start)
warm = times[-len(steps.ALL):]
print(json.dumps([imported, loaded, times[0], times[1], sum(warm) / len(warm), max(warm), parts]))
"""


def generate(folder: Path, modules: int, steps: int = 20) -> None:
    """Write the project."""
    package = folder / "project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for n in range(modules):
        used = [m for m in (2 * n + 1, 2 * n + 2) if m < modules and n % 64 < 5]
        imports = "\n".join(f"from project import m{m}" for m in used)
        calls = "".join(f", m{m}.run(x)" for m in used)
        (package / f"m{n}.py").write_text(MODULE.format(n=n, imports=imports, calls=calls))
    lines = [f"from project import m{n * 20 % modules}" for n in range(steps)]
    lines += [f"def s{n}(x):\n    return m{n * 20 % modules}.run(x)\n" for n in range(steps)]
    lines.append(f"ALL = [{', '.join(f's{n}' for n in range(steps))}]")
    (package / "steps.py").write_text("\n".join(lines))


def main(modules: int) -> None:
    """Generate, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name), modules)
        code = MEASURE.format(repository=str(REPOSITORY), folder=name, modules=modules)
        environ = {
            key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
        }
        runs = [
            json.loads(subprocess.check_output([sys.executable, "-c", code], env=environ))
            for _ in range(6)
        ][1:]
    best = [min(column) for column in zip(*runs, strict=True)]
    imported, loaded, first, second, mean, longest, parts = best
    print(f"import {modules} modules     {imported * 1000:7.1f} ms")
    for what, value in [
        ("import the fingerprint", loaded),
        ("first step in a process", first),
        ("the same step again", second),
        ("mean of 20 steps, warm", mean),
        ("slowest of them", longest),
    ]:
        print(f"{what:<24}{value * 1000:7.1f} ms  {value / imported:7.4f} of the import")
    print(f"largest fingerprint     {parts:5.0f} parts")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
