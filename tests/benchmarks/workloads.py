"""
The same steps twice: ``flows/`` declares them for pfl, ``plain/`` has the bare functions.

And two edits of both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_DISTRIBUTIONS = (
    "h11",
    "click",
    "idna",
    "certifi",
    "httpcore",
    "typer",
    "httpx",
    "anyio",
    "obstore",
    "tenacity",
    "websockets",
    "jinja2",
)
HOLD_S = 0.5  # The duration of the step of the concurrency section.


class Workload(NamedTuple):
    """
    One flow to measure.

    Attributes:
        name: The flow's name.
        steps: Its number of steps.
        files: Its files, relative to ``flows/`` and ``plain/``.
        helper: The edit that changes what a helper returns: file, old text, new text.
    """

    name: str
    steps: int
    files: tuple[str, ...]
    helper: tuple[str, str, str]

    def ids(self, count: int) -> list[str]:
        """*count* IDs; those of the audit are distributions that are installed with pfl."""
        if self.name == "audit":
            return list(_DISTRIBUTIONS[:count])
        return [f"id{number}" for number in range(count)]


def chain(steps: int) -> Workload:
    """A chain of generated steps."""
    return Workload(
        f"chain-{steps}",
        steps,
        (f"chain_{steps}.py", "links.py"),
        ("links.py", "total + 1", "total + 2"),
    )


MEANING = Workload("meaning", 3, ("a.py", "b.py", "c.py", "known.py"), ("known.py", "1234", "1235"))
_AUDIT_FILES = tuple(f"audit/{name}.py" for name in ("collect", "markdown", "measure", "report"))
AUDIT = Workload(
    "audit",
    3,
    _AUDIT_FILES,
    ("audit/measure.py", "len(source.splitlines())", "len(source.splitlines()) + 1"),
)
ALL = {each.name: each for each in (MEANING, AUDIT, *map(chain, (1, 3, 10, 50)))}

_KNOWN = '''"""What step a knows."""


def known(id: str) -> int:
    """What is known about the ID."""
    return 1234 if id else 420
'''
_LINKS = '''"""What each step of a chain does."""


def add(total: int) -> int:
    """One more."""
    return total + 1
'''
_LINK = '''
@step
def {name}(id: str{parameter}) -> int:
    """Step {number} of {steps}."""
    return add({argument})
'''
_HELD = f'''"""A step that takes a while, and records each run."""

import os
import time

from pfl import step


@step(depends_on=())
def held(id: str) -> str:
    """The ID, after a while."""
    with open(os.environ["BENCH_RAN"], "a") as file:
        file.write(id + "\\n")
    time.sleep({HOLD_S})
    return id
'''


def write(project: Path) -> None:
    """Write all workloads into *project*, as ``flows/`` and as ``plain/``."""
    flows = project / "flows"
    for path in (ROOT / "flows").rglob("*.py"):
        if path.name != "chat.py":
            _put(flows / path.relative_to(ROOT / "flows"), path.read_text(encoding="utf-8"))
    _put(flows / "known.py", _KNOWN)
    # The shipped step calls no helper, but the same kind of edit is measured in every workload.
    code = (flows / "a.py").read_text(encoding="utf-8")
    _put(
        flows / "a.py",
        code.replace("import step\n", "import step\n\nfrom flows.known import known\n").replace(
            '1234 if id == "abc" else 420', "known(id)"
        ),
    )
    _put(flows / "links.py", _LINKS)
    _put(flows / "held.py", _HELD)
    names = {
        "meaning": ["a", "b", "c"],
        "audit": ["collect", "measure", "report"],
        "held": ["held"],
    }
    imports = [f"from flows.{name} import {name}" for name in ("a", "b", "c", "held")]
    imports += [f"from flows.audit.{name} import {name}" for name in names["audit"]]
    for each in ALL.values():
        if each.name.startswith("chain"):
            names[each.name] = [f"s{each.steps}_{number}" for number in range(each.steps)]
            _put(flows / each.files[0], _chain_code(names[each.name]))
            imports.append(f"from flows.{each.files[0][:-3]} import {', '.join(names[each.name])}")
    declared = "\n".join(
        f'    flow("{name}", {", ".join(steps)}),' for name, steps in names.items()
    )
    _put(
        flows / "pipeline.py",
        "\n".join([*imports, "from pfl import flow", f"\nFLOWS = [\n{declared}\n]\n"]),
    )
    for path in flows.rglob("*.py"):
        code = path.read_text(encoding="utf-8").replace("from flows.", "from plain.")
        code = re.sub(r"^(@step.*|from pfl import .*)\n", "", code, flags=re.M)
        if path.name == "pipeline.py":
            rows = "\n".join(
                f'    "{name}": [{", ".join(steps)}],' for name, steps in names.items()
            )
            code = code.split("FLOWS = ")[0] + f"FLOWS = {{\n{rows}\n}}\n"
        _put(project / "plain" / path.relative_to(flows), code)


def edit(project: Path, workload: Workload, case: str) -> None:
    """
    Write all workloads, with the code of *workload* edited for *case*.

    Args:
        project: The project directory.
        workload: The workload to edit.
        case: ``cosmetic`` adds a comment before each return; ``helper`` changes what a helper
            returns; any other case changes nothing.
    """
    write(project)
    for package in ("flows", "plain"):
        for name in workload.files:
            path = project / package / name
            code = path.read_text(encoding="utf-8")
            if case == "cosmetic":
                code = re.sub(r"^( +)return ", r"\1# What was found.\n\1return ", code, flags=re.M)
            elif case == "helper" and name == workload.helper[0]:
                assert code.count(workload.helper[1]) == 1, name
                code = code.replace(*workload.helper[1:])
            path.write_text(code, encoding="utf-8")


def essence(workload: str, value: object) -> object:
    """
    The part of a last step's value that is compared.

    A report also mentions the previous report, which plain Prefect does not have.
    """
    return value["totals"] if workload == "audit" else value


def _chain_code(names: list[str]) -> str:
    code = (
        '"""A chain of generated steps."""\n\nfrom pfl import step\n\nfrom flows.links import add\n'
    )
    for number, name in enumerate(names):
        before = names[number - 1] if number else ""
        parameter, argument = (f", {before}: int", before) if before else ("", "len(id)")
        code += "\n" + _LINK.format(
            name=name, parameter=parameter, argument=argument, number=number + 1, steps=len(names)
        )
    return code


def _put(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
