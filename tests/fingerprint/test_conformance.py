"""
Every case, each side in a fresh process under its own hash seed and in its own folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import CASES, REPOSITORY, Case, copy, load_cases, run_all, run_case

ALL = load_cases()
RUNNABLE = [case for case in ALL if case.can_run()]
PYTHON_MATTERS = {"no_source_namedtuple_new"}  # where there is no source, bytecode counts


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_all(RUNNABLE, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_fingerprint_changes_exactly_when_behaviour_can(case: Case, results):
    if case.name not in results:
        pytest.skip(f"needs Python {case.python} or {case.needs or 'nothing'}")
    before, after = results[case.name]["before"], results[case.name]["after"]
    assert "error" not in before, before["error"]
    assert "error" not in after, after["error"]
    changed = before["digest"] != after["digest"]
    assert changed == (case.expect == "bust"), f"{case.why}\n{_difference(before, after)}"


def _difference(before, after):
    old, new = ({part["name"]: part for part in side["parts"]} for side in (before, after))
    rows = [f"{name}: {old.get(name)}\n  → {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]
    return "\n".join(rows)


def test_the_suite_is_as_large_as_promised_and_goes_both_ways():
    assert len(ALL) >= 150
    assert len([case for case in ALL if case.expect == "keep"]) >= 40
    assert {path.name for path in CASES.iterdir()} == {case.name for case in ALL}


def _pythons() -> dict[tuple[int, ...], str]:
    """Every interpreter of a supported version that runs here."""
    candidates = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    candidates += sorted(map(str, Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python")))
    found = {}
    for python in filter(None, candidates):
        command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.setdefault(tuple(map(int, done.stdout.split())), python)
    return found


def test_every_supported_python_gives_the_same_fingerprint(results, tmp_path):
    others = {version: python for version, python in _pythons().items() if version != sys.version_info[:2]}
    if not others:
        pytest.skip("there is no other Python here")
    different = {}
    for version, python in others.items():
        chosen = [case for case in RUNNABLE if not case.needs and case.can_run(version)][::3]
        found = run_all(chosen, tmp_path / str(version), python)
        for case in chosen:
            for side in ("before", "after"):
                mine, theirs = results[case.name][side], found[case.name][side]
                if mine.get("digest") != theirs.get("digest") and case.name not in PYTHON_MATTERS:
                    different[f"{version}: {case.name}/{side}"] = theirs.get("error") or _difference(mine, theirs)
    assert not different, "\n".join(f"{name}\n{said}" for name, said in different.items())


def test_the_command_gives_what_a_forked_process_gives(results, tmp_path):
    for case in [case for case in RUNNABLE if not case.needs][::60]:
        folder = copy(case, "before", tmp_path)
        environ = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder / 'site-packages'}"}
        command = [sys.executable, "-m", "handler.core.fingerprint", case.target]
        said = subprocess.check_output(command, cwd=folder, env=environ, text=True)
        assert said.startswith(results[case.name]["before"]["digest"])


def test_a_case_can_be_run_alone(tmp_path):
    sides = run_case(RUNNABLE[0], tmp_path)
    assert {len(side["digest"]) for side in sides.values()} == {64}
