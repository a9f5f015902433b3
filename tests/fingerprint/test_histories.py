"""
The runner of histories: on a small history whose edits are known, and on that of this project.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import histories
import mutants
import pytest
import reach
from corpus import HERE, REPOSITORY

BASE = '''
"""A project."""
from helpers import rate

LIMIT = 3


def total(items):
    """The sum of some."""
    return sum(item * rate(item) for item in items if item < LIMIT)


def unused():
    return 1
'''
HELPERS = """
def rate(item):
    if item > 100:
        return large(item)
    return 2


def large(item):
    return item
"""
DRIVER = """
import project


def step():
    return project.total([1, 2, 3, 4])
"""
# Each edit of the history: its subject, the file, what is replaced, and by what.
EDITS = [
    ("constant", "project.py", "LIMIT = 3", "LIMIT = 4"),
    ("function", "helpers.py", "return 2", "return 3"),
    ("words", "project.py", "def total(items):", "# Why.\ndef total(items: list[int]) -> int:"),
    ("unreached", "project.py", "return 1", "return 2"),
    ("helper", "helpers.py", "return item\n", "return item + 1\n"),
]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.check_output(command, text=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with a commit for each of `EDITS`."""
    folder = tmp_path_factory.mktemp("history")
    git(folder, "init", "--quiet")
    (folder / "project.py").write_text(BASE)
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "driver.txt").write_text(DRIVER)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "base")
    for subject, file, old, new in EDITS:
        text = (folder / file).read_text()
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new))
        git(folder, "commit", "--quiet", "-a", "-m", subject)
    return folder


def check(folder: Path, **options: Any) -> histories.Report:
    settings: dict[str, Any] = {
        "repository": folder,
        "range": "HEAD",
        "paths": ("project.py", "helpers.py"),
        "root": ".",
        "inside": "",
        "files": {},
        "driver": folder / "driver.txt",
        "targets": ("history_steps:step",),
        "pairs": 50,
        "mutants": 0,
        "fingerprint": None,
    }
    return histories.run(histories.Settings(**settings | options))


def subjects(folder: Path, findings: list[histories.Finding]) -> list[str]:
    return [git(folder, "log", "-1", "--format=%s", found.commit).strip() for found in findings]


def test_a_history_without_a_false_hit_is_reported_as_such(repository):
    report = check(repository, mutants=12)
    assert report.pairs == len(EDITS)
    assert (report.false_hits, report.needless) == ([], [])
    assert (report.errors, report.unstable) == ([], [])
    # Words and what is not reached, and the newest commit in another layout.
    assert report.quiet == 3
    # A helper that did not run.
    assert (report.either_changed, report.either_kept) == (1, [])
    # The constant and the function; the rest are mutants whose output differs.
    assert report.must == 2 + report.mutants
    assert report.mutants > 3


def test_a_fingerprint_that_ignores_constants_has_a_false_hit(repository, tmp_path):
    """The runner can fail."""
    (tmp_path / "blind.py").write_text(
        "import dataclasses\n"
        "from pfl.handler.core import fingerprint\n"
        "from pfl.handler.core.fingerprint.model import tagged\n"
        "def blind(function):\n"
        "    found = fingerprint.fingerprint(function)\n"
        "    parts = [part for part in found.parts if part.kind == 'function']\n"
        "    texts = sorted(part.text for part in parts)\n"
        "    return dataclasses.replace(found, digest=tagged('blind', *texts))\n"
    )
    report = check(repository, fingerprint=f"{tmp_path / 'blind.py'}:blind")
    assert subjects(repository, report.false_hits) == ["constant"]
    [found] = report.false_hits
    assert found.reasons == [
        "the output differs",
        "project:LIMIT was read: int:3 -> int:4",
    ]


def test_a_fingerprint_of_whole_files_is_needless(repository, tmp_path):
    (tmp_path / "nervous.py").write_text(
        "import dataclasses, hashlib, pathlib\n"
        "from pfl.handler.core import fingerprint\n"
        "def nervous(function):\n"
        "    found = fingerprint.fingerprint(function)\n"
        "    text = b''.join(pathlib.Path(file).read_bytes() for file in sorted(found.files))\n"
        "    return dataclasses.replace(found, digest=hashlib.sha256(text).hexdigest())\n"
    )
    report = check(repository, fingerprint=f"{tmp_path / 'nervous.py'}:nervous")
    assert subjects(repository, report.needless) == ["words", "unreached"]
    assert report.false_hits == []


def test_code_that_cannot_be_imported_is_an_error_and_not_a_hit(repository):
    report = check(repository, paths=("project.py",))
    assert "No module named 'helpers'" in report.errors[0]
    assert (report.pairs, report.false_hits) == (0, [])


def test_the_command_line_reports_and_fails_on_a_false_hit(repository, tmp_path, capsys):
    driver, to_json = repository / "driver.txt", tmp_path / "found.json"
    (tmp_path / "same.py").write_text(
        "import dataclasses\n"
        "from pfl.handler.core import fingerprint\n"
        "def same(function):\n"
        "    return dataclasses.replace(fingerprint.fingerprint(function), digest='0')\n"
    )
    options = ["--driver", str(driver), "--path", "project.py", "--path", "helpers.py"]
    options += ["--pairs", "2", "--range", "HEAD~3", "--json", str(to_json)]
    assert histories.main([str(repository), *options]) == 0
    assert "false hits          0 of them" in capsys.readouterr().out
    options += ["--fingerprint", f"{tmp_path / 'same.py'}:same"]
    assert histories.main([str(repository), *options]) == 1
    assert "FALSE HIT" in capsys.readouterr().out


def test_the_history_of_this_project_has_no_false_hit():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a checkout: it has no .git, so no history")
    if git(REPOSITORY, "rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("this is a shallow clone, which has no history")
    driver = HERE / "histories" / "pfl.py"
    report = check(
        REPOSITORY,
        paths=("__init__.py", "handler/__init__.py", "handler/core"),
        inside="own",
        driver=driver,
        targets=histories.targets_in(driver),
        pairs=2,
        mutants=4,
    )
    assert report.pairs > 0, report.errors
    assert report.must > 0
    assert (report.false_hits, report.unstable) == ([], [])


def test_what_is_reached_is_found_by_names(tmp_path):
    (tmp_path / "a.py").write_text(
        "import b\nfrom c import *\nclass Box:\n    x = 1\n    def get(self): return star()\n"
        "    def other(self): return b.no()\ndef step(): return Box().get() + b.used()\n"
    )
    (tmp_path / "b.py").write_text("def used(): return 1\ndef no(): return 2\n")
    (tmp_path / "c.py").write_text("def star(): return late()\ndef late(): pass\ndef not_(): 1\n")
    project = reach.Project(tmp_path, tmp_path)
    found = {name for name, text in project.reached("a:step", []).items() if text}
    assert found == {"a:step", "a:Box", "a:Box.get", "b:used", "c:star", "c:late"}


def test_a_name_that_is_chosen_at_run_time_may_be_any(tmp_path):
    (tmp_path / "a.py").write_text("import b\ndef step(name): return getattr(b, name)(b.one)\n")
    (tmp_path / "b.py").write_text("from c import two\ndef one(): return 1\ndef no(): return 2\n")
    (tmp_path / "c.py").write_text("def two(): return 2\ndef three(): return 3\n")
    project = reach.Project(tmp_path, tmp_path)
    found = {name for name, text in project.reached("a:step", []).items() if text}
    assert found == {"a:step", "b:one", "b:no", "c:two"}


def test_mutants_change_what_ran_and_nothing_else(tmp_path):
    (tmp_path / "a.py").write_text(
        "N = 1\nM = 5\n"
        "def f(x: int = 2):\n    '''Doc.'''\n    return x + 3 < N\n"
        "def g(): return 9\n"
    )
    made = mutants.mutants_of(tmp_path, {"a.py": [5]}, ["N"], 100)
    assert sorted(mutant.change for mutant in made) == [
        "line 1: 1 -> 2",
        "line 3: 2 -> 3",
        "line 5: 3 -> 4",
        "line 5: Add -> Sub",
        "line 5: Lt -> GtE",
    ]
