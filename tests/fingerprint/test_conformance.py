"""
Every case, each side in a fresh process under its own hash seed and in its own folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import CASES, HERE, REPOSITORY, Case, Runner, copy_all, folder_of, load_cases

ALL = load_cases()
RUNNABLE = [case for case in ALL if case.can_run()]
PYTHON_MATTERS = {
    "no_source_namedtuple_new",
    "value_exec_names",
    "value_log_formatter",
    "value_class_vars",
}  # where there is no source, bytecode counts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("cases")
    copy_all(ALL, place)
    return place


@pytest.fixture(scope="module")
def others():
    """Every other interpreter of a supported version that runs here, by version."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # HOME is another one while testing
    candidates = [
        *home.glob(".pyenv/versions/3.1[1-9]*/bin/python"),
        *(shutil.which(f"python3.{minor}") for minor in range(11, 16)),
    ]
    found = {}
    for python in filter(None, candidates):
        command = [python, "-S", "-c", "import sys; print(*sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if (
            done.returncode == 0
            and (version := tuple(map(int, done.stdout.split()))) != sys.version_info[:2]
        ):
            found.setdefault(version, str(python))
    return found


@pytest.fixture(scope="module")
def runner(place):
    with Runner(place) as runner:
        yield runner


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_fingerprint_changes_exactly_when_behaviour_can(case: Case, runner, others):
    python = sys.executable
    if not case.can_run():
        able = [each for version, each in others.items() if case.can_run(version)]
        if case.needs or not able:
            pytest.skip(f"needs Python {case.python} or {case.needs or 'nothing'}")
        python = able[0]
    before, after = runner.run(case, "before", python), runner.run(case, "after", python)
    assert "error" not in before, before["error"]
    assert "error" not in after, after["error"]
    changed = before["digest"] != after["digest"]
    assert changed == (case.expect == "bust"), f"{case.why}\n{_difference(before, after)}"


def _difference(before, after):
    old, new = ({part["name"]: part for part in side["parts"]} for side in (before, after))
    rows = [
        f"{name}: {old.get(name)}\n  → {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return "\n".join(rows)


def test_the_suite_is_as_large_as_promised_and_goes_both_ways():
    assert len(ALL) >= 150
    assert len([case for case in ALL if case.expect == "keep"]) >= 40
    assert {path.name for path in CASES.iterdir()} == {case.name for case in ALL}


def test_every_supported_python_gives_the_same_fingerprint(runner, others):
    if not others:
        pytest.skip("there is no other Python here")
    different = {}
    for number, (version, python) in enumerate(others.items()):
        chosen = [case for case in RUNNABLE if not case.needs and case.name not in PYTHON_MATTERS][
            number :: max(3, len(others))
        ]
        for case in chosen:
            mine, theirs = runner.run(case, "after"), runner.run(case, "after", python)
            if mine.get("digest") != theirs.get("digest"):
                different[f"{version}: {case.name}"] = theirs.get("error") or _difference(
                    mine, theirs
                )
    assert not different, "\n".join(f"{name}\n{said}" for name, said in different.items())


def test_the_command_gives_what_a_forked_process_gives(runner, place):
    for case in [case for case in RUNNABLE if not case.needs][::160]:
        folder = folder_of(case, "before", place)
        environ = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder / 'site-packages'}",
        }
        command = [sys.executable, str(HERE / "command.py"), case.target]
        said = subprocess.check_output(command, cwd=folder, env=environ, text=True)
        assert said.startswith(runner.run(case, "before")["digest"])
