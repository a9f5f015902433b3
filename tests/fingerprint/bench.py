"""
How long a fingerprint takes, compared with importing a generated project.

Run ``python tests/fingerprint/bench.py [MODULES]``, ``bench.py large`` for steps that reach much,
or ``bench.py plan`` for the command.

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
import time
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


LARGE = """
from dataclasses import dataclass
{imports}

{body}
"""
PIECE = """
RATE_{n} = {n}


@dataclass
class Row_{n}:
    price: int = RATE_{n}
    name: str = "row {n}"

    def total(self, x):
        return self.price * x + len(self.name)


def price_{n}(x):
    rows = [Row_{n}(price) for price in range(x)]
    found = sum(row.total(x) for row in rows if row.price > RATE_{n})
    return found{more}

"""
MEASURE_LARGE = """
import json, sys, time
sys.path[:0] = [{repository!r}, {folder!r}]
from pfl.handler.core.fingerprint import fingerprint
start = time.process_time()
import project.{steps} as steps
imported = time.process_time() - start
times = []
for _ in range(4):
    start = time.process_time()
    found = fingerprint(steps.step)
    times.append(time.process_time() - start)
print(json.dumps([imported, times[0], min(times[1:]), len(found.parts)]))
"""
STEP = "from project import m{n}\n\ndef step(x):\n    return m{n}.price_0(x)\n"


def generate_large(folder: Path, pieces: int, modules: int = 300) -> None:
    """Write a project with a step that reaches all *modules*, each of which has some *pieces*."""
    package = folder / "project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for n in range(modules):
        used = [m for m in (2 * n + 1, 2 * n + 2) if m < modules]
        body = ""
        for piece in range(pieces):
            more = f" + price_{piece + 1}(x)" if piece + 1 < pieces else ""
            if not piece:
                more += "".join(f" + m{m}.price_0(x)" for m in used)
            body += PIECE.format(n=piece, more=more)
        imports = "\n".join(f"from project import m{m}" for m in used)
        (package / f"m{n}.py").write_text(LARGE.format(imports=imports, body=body))
    (package / "all.py").write_text(STEP.format(n=0))
    (package / "some.py").write_text(STEP.format(n=modules // 43))


def best_of(code: str) -> list[float]:
    """The best of each figure that *code* prints, in five fresh processes."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    runs = [json.loads(subprocess.check_output(command, env=environ)) for _ in range(6)]
    return [min(column) for column in zip(*runs[1:], strict=True)]


def large() -> None:
    """Steps that reach hundreds and thousands of parts."""
    for steps in ("some", "all"):
        with tempfile.TemporaryDirectory() as name:
            generate_large(Path(name), 3)
            code = MEASURE_LARGE.format(repository=str(REPOSITORY), folder=name, steps=steps)
            imported, first, warm, parts = best_of(code)
        print(
            f"{parts:5.0f} parts: import {imported * 1000:7.1f} ms, first {first * 1000:7.1f} ms,"
            f" {first / imported:.2f} of the import; again {warm * 1000:6.1f} ms"
        )


PLAN = """
import sys
sys.path.insert(0, {folder!r})
from pfl import flow, step
{imports}

{steps}
FLOWS = [{flows}]
MODULES = [{used}]
"""
PLAN_STEP = """
@step
def s{n}(id: str) -> str:
    return str(m{m}.run(1))
"""


def plan(modules: int = 500, flows: int = 20) -> None:
    """``pfl plan`` in a large project, best of five, wall time."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        generate(root, modules)
        (root / "flows").mkdir()
        steps = [PLAN_STEP.format(n=n, m=n * 20 % modules) for n in range(flows)]
        text = PLAN.format(
            folder=name,
            imports="\n".join(f"from project import m{m}" for m in range(modules)),
            steps="\n".join(steps),
            used=", ".join(f"m{m}" for m in range(modules)),
            flows=", ".join(f"flow('f{n}', s{n})" for n in range(flows)),
        )
        (root / "flows" / "pipeline.py").write_text(text)
        environ = os.environ | {"PFL_PROJECT": name, "PFL_ENGINE": "direct", "PYTHONPATH": name}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        load = f"for n in range({modules}): __import__(f'project.m{{n}}')"
        pfl = str(Path(sys.executable).parent / "pfl")
        for what, command in (
            ("import the modules", [sys.executable, "-c", load]),
            ("pfl --version", [pfl, "--version"]),
            ("pfl plan, nothing known", [pfl, "plan", "--id", "x", "--flow", "f0"]),
            ("pfl plan, one module edited", [pfl, "plan", "--id", "x", "--flow", "f0"]),
            ("pfl plan, no edit", [pfl, "plan", "--id", "x", "--flow", "f0"]),
        ):
            times = []
            for turn in range(6):
                for manifest in root.glob(".pfl/manifest*") if "nothing" in what else ():
                    manifest.unlink()
                if "edited" in what:
                    path = root / "project" / "m7.py"
                    path.write_text(f"{path.read_text()}\nEDIT = {turn}\n")
                start = time.perf_counter()
                subprocess.run(command, env=environ, cwd=root, check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            print(f"{what:<30}{min(times[1:]) * 1000:7.1f} ms")


def main(modules: int) -> None:
    """Generate, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name), modules)
        code = MEASURE.format(repository=str(REPOSITORY), folder=name, modules=modules)
        best = best_of(code)
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
    chosen = sys.argv[1] if len(sys.argv) > 1 else "500"
    if chosen.isdecimal():
        main(int(chosen))
    else:
        {"large": large, "plan": plan}[chosen]()
