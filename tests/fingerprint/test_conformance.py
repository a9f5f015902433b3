"""
Every case, each side in a fresh process under its own hash seed and in its own folder.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from corpus import CASES, Case, load_cases, run_all, run_case

ALL = load_cases()
RUNNABLE = [case for case in ALL if case.can_run()]
OTHER_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")


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


@pytest.mark.parametrize("name", OTHER_PYTHONS)
def test_every_supported_python_gives_the_same_fingerprint(name, results, tmp_path):
    python = shutil.which(name)
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{name} is not installed")
    said = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True)
    version = tuple(map(int, said.stdout.split()))
    chosen = [case for case in RUNNABLE if not case.needs and case.can_run(version)][::8]
    different = {}
    found = run_all(chosen, tmp_path, python)
    for case in chosen:
        for side in ("before", "after"):
            mine, theirs = results[case.name][side], found[case.name][side]
            if mine.get("digest") != theirs.get("digest"):
                different[f"{case.name}/{side}"] = theirs.get("error") or _difference(mine, theirs)
    assert not different


def test_a_case_can_be_run_alone(tmp_path):
    sides = run_case(RUNNABLE[0], tmp_path)
    assert {len(side["digest"]) for side in sides.values()} == {64}
