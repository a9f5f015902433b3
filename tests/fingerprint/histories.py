"""
The fingerprint on real histories: ``python tests/fingerprint/histories.py REPO --project NAME``.

For each commit of a range, the code before and after it is put into a checkout. Functions of a
driver, a file that is put next to the project's package, call the project with made inputs.
A tracer shows which of the project's functions run. Then the fingerprints of both sides, each from
a fresh process, are compared:

- The output, a function that ran, or plain data that it read differs: the digest must change.
- Nothing that can be reached differs but comments, docstrings and annotations: it must not.
- Anything else, such as a helper that is reached but did not run, may change it.

Mutants are small changes of code that ran in the newest commit. Those that change the output must
change the digest. ``histories/projects.toml`` names ranges of public projects, and
``histories/NAME.py`` is the driver of each; for other projects, give the options.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Queue
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path[:0] = [str(HERE)]

import mutants  # noqa: E402 - found next to this file
import observe  # noqa: E402
import reach  # noqa: E402

DRIVER = "history_steps"
# Where the two checkouts of a commit are.
PLACES = ("a", "other-place/deeper/b")
# One commit in this many is looked at in both.
TWICE = 5


@dataclass(frozen=True)
class Settings:
    """
    What to run.

    Args:
        repository: A folder with a git repository, bare or not.
        range: As for ``git log``.
        paths: Files and folders of the repository that are needed.
        root: The folder of the repository from which its code is imported.
        inside: A folder to put the repository in, if it is a package itself; *root* does not count.
        files: Files that the project's build makes, relative to the root, and what is in them.
        driver: A Python file to put in the root; it is imported as ``history_steps``.
        targets: ``MODULE:FUNCTION``, called without arguments.
        pairs: How many commits at most, the newest first.
        mutants: How many changes of code that ran.
        fingerprint: ``FILE:FUNCTION`` in place of the fingerprint.
    """

    repository: Path
    range: str
    paths: tuple[str, ...]
    root: str
    inside: str
    files: dict[str, str]
    driver: Path | None
    targets: tuple[str, ...]
    pairs: int
    mutants: int
    fingerprint: str | None


@dataclass
class Finding:
    """A check whose result is not what it must be."""

    commit: str
    target: str
    reasons: list[str]
    causes: list[str] = field(default_factory=list)
    is_marked: bool = False


@dataclass
class Report:
    """What was found in one history."""

    pairs: int = 0
    mutants: int = 0
    must: int = 0
    quiet: int = 0
    either_changed: int = 0
    either_kept: list[Finding] = field(default_factory=list)
    false_hits: list[Finding] = field(default_factory=list)
    needless: list[Finding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unstable: list[Finding] = field(default_factory=list)
    imports: list[float] = field(default_factory=list)
    fingerprints: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def checks(self) -> int:
        """How many comparisons had a result that they must have."""
        return self.must + self.quiet


class Observer:
    """
    A process that looks at checkouts.

    Args:
        seed: Its hash seed.
        step: -1 if the functions are fingerprinted in the reverse order.
        fingerprint: ``FILE:FUNCTION`` in place of the fingerprint.
    """

    def __init__(self, seed: int, step: int, fingerprint: str | None) -> None:
        self.step = step
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONHASHSEED": str(seed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TZ": "UTC",
        }
        command = [sys.executable, str(HERE / "observe.py"), *filter(None, [fingerprint])]
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def observe(
        self, root: Path, checkout: Path, targets: Sequence[str], outputs: dict[str, str]
    ) -> dict[str, Any]:
        """The reply of ``observe.py``."""
        job = {
            "root": str(root),
            "checkout": str(checkout),
            "targets": targets,
            "order": targets[:: self.step],
            "outputs": outputs,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(job)}\n")
        self.process.stdin.flush()
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply


class Observers:
    """
    Two processes under one hash seed, and a third under another one.

    Two of them work at a time.
    """

    def __init__(self, fingerprint: str | None) -> None:
        self.all = [Observer(1, 1, fingerprint), Observer(1, 1, fingerprint)]
        self.all.append(Observer(4_000, -1, fingerprint))
        self.free: tuple[Queue[Observer], Queue[Observer]] = (Queue(), Queue())
        for observer in self.all:
            self.free[observer.step == -1].put(observer)

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *exc: object) -> None:
        for observer in self.all:
            observer.process.communicate()

    @contextmanager
    def taken(self, *, is_other: bool) -> Iterator[Observer]:
        """A process that is free, under the one seed or the other."""
        observer = self.free[is_other].get()
        try:
            yield observer
        finally:
            self.free[is_other].put(observer)


@dataclass
class Checkout:
    """
    One state of the project in a folder, and what its functions do.

    Args:
        folder: The repository's files.
        root: The folder from which they are imported.
        observed: One reply of ``observe.py``, or two from different places.
        targets: The functions.
    """

    folder: Path
    root: Path
    observed: list[dict[str, Any]]
    targets: tuple[str, ...]
    reached: dict[str, dict[str, str]] = field(default_factory=dict)

    @cached_property
    def project(self) -> reach.Project:
        """Its source."""
        return reach.Project(self.root, self.folder)

    @property
    def error(self) -> str:
        """Why nothing is known about it."""
        said = [reply["error"] for reply in self.observed if "error" in reply]
        return said[0].strip().splitlines()[-1] if said else ""

    def of(self, target: str, side: int = 0) -> observe.Observed:
        """What is known about one function."""
        found: observe.Observed = self.observed[side]["targets"][target]
        return found

    def outputs(self) -> dict[str, str]:
        """What each function returned."""
        return {target: self.of(target)["output"] for target in self.targets}

    def reach_of(self, target: str) -> dict[str, str]:
        """What counts of each unit that a function reaches."""
        if target not in self.reached:
            ran = self.project.executed(self.of(target)["executed"])
            self.reached[target] = self.project.reached(target, ran)
        return self.reached[target]


class History:
    """The commits of a range, and checkouts of them."""

    def __init__(self, settings: Settings, place: Path, observers: Observers) -> None:
        self.settings = settings
        self.place = place
        self.observers = observers
        self.git_dir = self.git("rev-parse", "--absolute-git-dir").strip()

    def git(self, *arguments: str) -> str:
        """What a command of git prints."""
        command = ["git", "-C", str(self.settings.repository), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.PIPE)

    def pairs(self) -> list[tuple[str, str]]:
        """Each commit that changes Python code, after its parent; the newest is the last."""
        paths = self.settings.paths
        patterns = [f":(glob){path}/**/*.py" for path in paths if not path.endswith(".py")]
        patterns += [path for path in paths if path.endswith(".py")]
        count = f"--max-count={self.settings.pairs}"
        options = ["--no-merges", "--format=%H %P", count, self.settings.range, "--"]
        rows = [line.split() for line in self.git("log", *options, *patterns).splitlines()]
        return [(row[1], row[0]) for row in reversed(rows) if len(row) > 1]

    def tree_of(self, commit: str) -> str:
        """The files of a commit that count, as a digest."""
        listed = self.git("ls-tree", commit, "--", *self.settings.paths)
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    def checkouts(self, commits: Sequence[str]) -> dict[str, Checkout]:
        """The state of each commit; one in `TWICE`, and the last, are looked at twice."""
        trees = {commit: self.tree_of(commit) for commit in commits}
        chosen = list({tree: commit for commit, tree in trees.items()}.values())
        twice = {*chosen[::-TWICE]}

        def look(commit: str) -> tuple[str, Checkout]:
            tree = trees[commit]
            found = self.observe(tree, lambda folder: self.export(commit, folder), commit in twice)
            show(f"{commit[:8]} {found.error}")
            return tree, found

        with ThreadPoolExecutor(2) as pool:
            found = dict(pool.map(look, chosen))
        return {commit: found[trees[commit]] for commit in commits}

    def export(self, commit: str, folder: Path) -> None:
        """Write the files of a commit, and the driver."""
        folder.mkdir(parents=True)
        names = self.git("ls-tree", "--name-only", commit, "--", *self.settings.paths).splitlines()
        # Not git archive, which may put the commit's name into files.
        command = ["git", f"--git-dir={self.git_dir}", f"--work-tree={folder}", "checkout", "-q"]
        index = folder.with_name(f"{folder.name}.index")
        environ = {**os.environ, "GIT_INDEX_FILE": str(index)}
        subprocess.run([*command, commit, "--", *names], check=True, env=environ)
        root = self.root_of(folder)
        root.mkdir(parents=True, exist_ok=True)
        for name, text in self.settings.files.items():
            (root / name).write_text(text)
        if self.settings.driver is not None:
            shutil.copy(self.settings.driver, root / f"{DRIVER}.py")

    def variant(
        self, key: str, origin: Checkout, texts: dict[str, str], outputs: dict[str, str]
    ) -> Checkout:
        """*origin* with other texts in its files."""

        def copy(folder: Path) -> None:
            shutil.copytree(origin.root, self.root_of(folder), symlinks=True)
            for file, text in texts.items():
                (folder / file).write_text(text, "utf-8")

        return self.observe(key, copy, outputs=outputs)

    def root_of(self, folder: Path) -> Path:
        """The folder from which the code of a checkout is imported."""
        return folder.parent if self.settings.inside else folder / self.settings.root

    def observe(
        self,
        key: str,
        write: Callable[[Path], None],
        is_twice: bool = False,
        outputs: dict[str, str] | None = None,
    ) -> Checkout:
        """Write the files of a checkout and look at its functions, in one place or in two."""
        folders = [self.place / name / key / self.settings.inside for name in PLACES]
        observed: list[dict[str, Any]] = []
        for folder in folders if is_twice else folders[:1]:
            write(folder)
            root = self.root_of(folder)
            with self.observers.taken(is_other=bool(observed)) as observer:
                said = observer.observe(root, folder, self.settings.targets, outputs or {})
            observed.append(said)
        return Checkout(folders[0], self.root_of(folders[0]), observed, self.settings.targets)


def reasons_to_change(old: Checkout, new: Checkout, target: str) -> list[str]:
    """Why the digest must change."""
    before, after = old.of(target), new.of(target)
    found = ["the output differs"] if before["output"] != after["output"] else []
    ran, runs = (side.project.executed(side.of(target)["executed"]) for side in (old, new))
    texts, other = old.project.texts(), new.project.texts()
    for key in sorted({**ran, **runs}):
        file, name = key
        if key in ran and key in runs:
            is_changed = ran[key] != runs[key]
        else:
            # It may have moved, or an edit elsewhere may have led to it.
            is_changed = ran.get(key, runs.get(key)) not in (other if key in ran else texts)
        if is_changed:
            found.append(f"{name} in {file} ran")
    reads, read = before["reads"], after["reads"]
    for name in sorted(reads.keys() & read.keys()):
        if reads[name] != read[name]:
            found.append(f"{name} was read: {reads[name][:60]} -> {read[name][:60]}")
    return found


def compare(report: Report, label: str, old: Checkout, new: Checkout, target: str) -> None:
    """Compare the fingerprints of one function on both sides of an edit."""
    before, after = old.of(target), new.of(target)
    said = before.get("error") or after.get("error")
    if said:
        report.errors.append(f"{label} {target}: {said.strip().splitlines()[-1]}")
        return
    is_changed = before["digest"] != after["digest"]
    reasons = reasons_to_change(old, new, target)
    if reasons:
        report.must += 1
        if not is_changed:
            is_marked = bool(before["opaque"] or after["opaque"])
            report.false_hits.append(Finding(label, target, reasons, is_marked=is_marked))
    elif old.reach_of(target) == new.reach_of(target):
        report.quiet += 1
        if is_changed:
            report.needless.append(Finding(label, target, [], causes(before, after)))
    elif is_changed:
        report.either_changed += 1
    else:
        units = old.reach_of(target), new.reach_of(target)
        names = {name for name, _ in units[0].items() ^ units[1].items()}
        report.either_kept.append(Finding(label, target, sorted(names)))


def causes(before: observe.Observed, after: observe.Observed) -> list[str]:
    """Sentences about the parts that differ, as ``pfl cache why`` prints them."""
    from pfl.handler.core.fingerprint import Part
    from pfl.handler.core.fingerprint.changes import explain

    sides = ([Part.from_json(part) for part in side["parts"]] for side in (before, after))
    return explain(*sides, diff=True)


def check_checkout(report: Report, label: str, side: Checkout) -> bool:
    """Note what is wrong with one state of the project; whether it can be compared."""
    if side.error:
        report.errors.append(f"{label}: {side.error}")
        return False
    report.imports += [reply["seconds"] for reply in side.observed]
    for target in side.targets:
        one, two = side.of(target), side.of(target, len(side.observed) - 1)
        if not one["executed"]:
            report.errors.append(f"{label} {target}: no code of the project ran: {one['output']}")
        if one["output"] != two["output"]:
            report.errors.append(f"{label} {target}: each process has another output")
        if one.get("digest") != two.get("digest"):
            differing = causes(one, two) if "digest" in one and "digest" in two else []
            report.unstable.append(Finding(label, target, [], differing))
        if "seconds" in one:
            report.fingerprints.append(one["seconds"])
    return True


def check_history(history: History) -> Report:
    """Compare each pair of commits, and mutants of the newest."""
    report = Report()
    start = time.monotonic()
    pairs = history.pairs()
    checkouts = history.checkouts(list(dict.fromkeys(commit for pair in pairs for commit in pair)))
    can_compare: dict[Path, bool] = {}
    for commit, side in checkouts.items():
        if side.folder not in can_compare:
            can_compare[side.folder] = check_checkout(report, commit[:8], side)
    for parent, commit in pairs:
        old, new = checkouts[parent], checkouts[commit]
        if can_compare[old.folder] and can_compare[new.folder]:
            report.pairs += 1
            for target in new.targets:
                compare(report, commit[:8], old, new, target)
    newest = checkouts[pairs[-1][1]] if pairs else None
    if newest is not None and can_compare[newest.folder] and history.settings.mutants:
        check_mutants(history, report, newest)
    report.seconds = time.monotonic() - start
    return report


def check_mutants(history: History, report: Report, origin: Checkout) -> None:
    """Change code that ran, and compare where the output changed with it."""
    lines: dict[str, set[int]] = {}
    reads = set()
    for target in origin.targets:
        found = origin.of(target)
        reads |= {name.partition(":")[2] for name in found["reads"]}
        for file, numbers in found["lines"].items():
            if Path(file).stem == DRIVER:
                continue
            lines.setdefault(file, set()).update(numbers)
    # Written by ast.unparse as the mutants are: other layout, no comments.
    texts = {
        file: ast.unparse(ast.parse((origin.folder / file).read_text("utf-8")))
        for file in sorted(lines)
    }
    plain = history.variant("layout", origin, texts, {})
    if not check_checkout(report, "another layout", plain):
        return
    for target in origin.targets:
        compare(report, "another layout", origin, plain, target)
    by_file = {file: sorted(found) for file, found in lines.items()}
    made = mutants.mutants_of(origin.folder, by_file, reads, history.settings.mutants)

    def look(number: int) -> Checkout:
        changed = {**texts, made[number].file: made[number].text}
        return history.variant(f"mutant{number}", origin, changed, plain.outputs())

    with ThreadPoolExecutor(2) as pool:
        for mutant, new in zip(made, pool.map(look, range(len(made))), strict=True):
            if new.error:
                continue  # It cannot be imported.
            for target in origin.targets:
                compare_mutant(report, mutant, plain, new, target)
            show(f"{mutant.file} {mutant.change}: {len(report.false_hits)} false hits")


def compare_mutant(
    report: Report, mutant: mutants.Mutant, old: Checkout, new: Checkout, target: str
) -> None:
    """Check a mutant, if it changes what the function returns."""
    before, after = old.of(target), new.of(target)
    if before["output"] == after["output"] or "digest" not in after or "digest" not in before:
        return
    report.mutants += 1
    report.must += 1
    if before["digest"] == after["digest"]:
        label = f"{mutant.file} {mutant.change}"
        reasons = [f"the output differs: {before['output'][:80]} -> {after['output'][:80]}"]
        is_marked = bool(before["opaque"] or after["opaque"])
        report.false_hits.append(Finding(label, target, reasons, is_marked=is_marked))


def show(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def printed(name: str, report: Report) -> Iterator[str]:
    """The report as lines."""
    marked = sum(found.is_marked for found in report.false_hits)
    mean = sum(report.fingerprints) / max(1, len(report.fingerprints))
    imports = sum(report.imports) / max(1, len(report.imports))
    yield f"{name}: {report.pairs} pairs, {report.checks} checks in {report.seconds:.0f} s"
    yield f"  must change     {report.must:5} of them, {report.mutants} mutants"
    yield f"  false hits      {len(report.false_hits):5} of them, {marked} marked as opaque"
    yield f"  must not change {report.quiet:5} of them"
    yield f"  needless        {len(report.needless):5}"
    either = report.either_changed + len(report.either_kept)
    yield f"  may change      {either:5} more, {report.either_changed} changed"
    yield f"  errors          {len(report.errors):5}"
    yield f"  unstable        {len(report.unstable):5}"
    yield f"  times           import {imports * 1000:.0f} ms, fingerprint {mean * 1000:.0f} ms"
    for found in report.false_hits:
        mark = " (opaque)" if found.is_marked else ""
        yield f"FALSE HIT{mark} {found.commit} {found.target}: {'; '.join(found.reasons)}"
    for found in report.needless:
        yield f"needless {found.commit} {found.target}: {first_lines(found)}"
    for text, count in commonest_causes(report.needless):
        yield f"cause ({count} commits) {text}"
    for text, count in Counter(report.errors).items():
        yield f"error ({count} times) {text}"
    for found in report.unstable:
        yield f"unstable {found.commit} {found.target}: {first_lines(found)}"


def first_lines(found: Finding) -> str:
    """The causes without their diffs."""
    return "; ".join(cause.partition("\n")[0] for cause in found.causes)


def commonest_causes(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    """What changed needlessly, and in how many commits, the commonest first."""
    found = {
        (finding.commit, re.sub(r":\d+", "", cause.partition("\n")[0]))
        for finding in findings
        for cause in finding.causes
    }
    return Counter(cause for _, cause in sorted(found)).most_common(10)


def targets_in(driver: Path) -> tuple[str, ...]:
    """The public functions of a driver."""
    functions = [
        each for each in ast.parse(driver.read_text()).body if isinstance(each, ast.FunctionDef)
    ]
    return tuple(f"{DRIVER}:{each.name}" for each in functions if not each.name.startswith("_"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0].strip())
    parser.add_argument("repository", type=Path, help="a folder with a git repository")
    parser.add_argument("--project", help="take the options from histories/projects.toml")
    parser.add_argument("--range", help="which commits, as for git log")
    parser.add_argument("--path", action="append", help="a file or folder that is needed")
    parser.add_argument("--root", help="folder of the repository from which code is imported")
    parser.add_argument("--inside", help="put the repository in this folder, it is a package")
    parser.add_argument("--driver", type=Path, help="file with functions that call the project")
    parser.add_argument("--target", action="append", help="MODULE:FUNCTION, without arguments")
    parser.add_argument("--pairs", type=int, default=50, help="how many commits at most")
    parser.add_argument("--mutants", type=int, default=0, help="how many changes to make")
    parser.add_argument("--fingerprint", help="FILE:FUNCTION in place of the fingerprint")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> Settings:
    """What to run: options, then the table of projects, then defaults."""
    table: dict[str, Any] = {}
    driver = options.driver
    if options.project:
        projects = tomllib.loads((HERE / "histories" / "projects.toml").read_text())
        table = projects[options.project]
        driver = driver or HERE / "histories" / f"{options.project}.py"
    targets = tuple(options.target or ()) or (targets_in(driver) if driver else ())
    if not targets:
        raise SystemExit("error: give --project, --driver or --target")
    return Settings(
        repository=options.repository,
        range=options.range or table.get("range", "HEAD"),
        paths=tuple(options.path or table.get("paths", ["."])),
        root=options.root or table.get("root", "."),
        inside=options.inside or table.get("inside", ""),
        files=table.get("files", {}),
        driver=driver,
        targets=targets,
        pairs=options.pairs,
        mutants=options.mutants,
        fingerprint=options.fingerprint,
    )


def run(settings: Settings) -> Report:
    """Check one history."""
    with (
        tempfile.TemporaryDirectory() as place,
        Observers(settings.fingerprint) as observers,
    ):
        return check_history(History(settings, Path(place).resolve(), observers))


def main(arguments: Sequence[str]) -> int:
    """
    Check one history and print the report.

    Returns:
        The exit code: 0, or 1 if the fingerprint missed a change.
    """
    options = parse(arguments)
    report = run(settings_of(options))
    print("\n".join(printed(options.project or options.repository.name, report)))
    if options.json:
        options.json.write_text(json.dumps(vars(report), default=vars))
    return 1 if report.false_hits else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
