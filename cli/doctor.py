"""``pfl doctor``: checks everything that can be wrong at once, and prints what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..handler.core.errors import NotFoundError, PflError, UnavailableError
from . import output, settings
from .options import Json

if TYPE_CHECKING:
    from ..handler.core.declare.project import Project
    from ..handler.core.settings import Settings
    from ..handler.core.store.objects import Store
    from ..handler.engine.prefect.environment import Api

# AWS refuses signatures that are 15 minutes off, and leases go by the store's own clock.
_SKEW_S = 30
_CHECKS = (
    "versions",
    "dotenv",
    "flows",
    "prefect",
    "block",
    "store",
    "bucket",
    "function",
    "worker",
    "slots",
    "stuck",
    "unstable",
)
# For each property of a bucket: boto3's method, the field of its answer, and the fix.
_BUCKET = {
    "private": (
        "get_public_access_block",
        "PublicAccessBlockConfiguration",
        "aws s3api put-public-access-block",
    ),
    "encrypted": (
        "get_bucket_encryption",
        "ServerSideEncryptionConfiguration",
        "aws s3api put-bucket-encryption",
    ),
    "versioned": (
        "get_bucket_versioning",
        "Status",
        "aws s3api put-bucket-versioning: then deleted objects can be recovered",
    ),
    "with a lifecycle": (
        "get_bucket_lifecycle_configuration",
        "Rules",
        "aws s3api put-bucket-lifecycle-configuration, for old versions",
    ),
}


class Finding(NamedTuple):
    """What a check found: ``ok``, ``warn``, ``fail`` or ``skip``, the fix, and the exit code."""

    status: str
    what: str
    fix: str = ""
    exit_code: int = 2


def _ok(what: str) -> Finding:
    return Finding("ok", what)


def _warn(what: str, fix: str) -> Finding:
    return Finding("warn", what, fix)


class _SkippedError(Exception):
    """A check has nothing to do; the message says why."""


def doctor(
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Skip what takes seconds: unstable fingerprints, a test of the block."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Check everything that can be wrong; the exit code is 0, or that of the first failure."""
    from concurrent.futures import ThreadPoolExecutor

    doc = Doctor(settings.load(), fast)
    names = [name for name in _CHECKS if not (fast and name == "unstable")]
    rows: list[tuple[str, Finding]] = []
    with output.stdout_kept_for_data():
        doc.load()
        with ThreadPoolExecutor(len(names)) as pool:
            for name, findings in zip(names, pool.map(doc.run, names), strict=True):
                rows += [(name, found) for found in findings]
    if json:
        for name, found in rows:
            output.emit({"check": name, **found._asdict()})
    else:
        cells = [(name, found.status, found.what) for name, found in rows]
        output.table(("check", "status", "found"), cells)
        for fix in dict.fromkeys(f"{name}: {found.fix}" for name, found in rows if found.fix):
            output.say(fix)
    failed = [found for _, found in rows if found.status == "fail"]
    warned = sum(found.status == "warn" for _, found in rows)
    warnings = output.counted(warned, "warning")
    output.say(f"{output.counted(len(rows), 'check')}, {len(failed)} failed, {warnings}")
    if failed:
        raise typer.Exit(failed[0].exit_code)


class Doctor:
    """The checks on one set of settings; a check yields findings, or raises what ends it."""

    def __init__(self, chosen: Settings, fast: bool) -> None:
        self.chosen = chosen
        self.fast = fast
        self.loaded: Project | None = None
        self.load_error: PflError | None = None

    def load(self) -> None:
        """Import the flows, once and in this thread: several checks need them."""
        from ..handler.core.declare import project

        try:
            self.loaded = project.load(self.chosen)
        except PflError as exc:
            self.load_error = exc

    def run(self, name: str) -> list[Finding]:
        """The findings of a check; an exception is one of them, and ends no other check."""
        found: list[Finding] = []
        check: Callable[[], Iterator[Finding]] = getattr(self, name)
        try:
            found += check()
        except _SkippedError as exc:
            found.append(Finding("skip", str(exc)))
        except PflError as exc:
            hint = exc.hint or "is the service up, and its address right? pfl config show"
            found.append(Finding("fail", str(exc), hint, exc.exit_code))
        except Exception as exc:
            what = f"the check broke: {type(exc).__name__}: {exc}"
            found.append(Finding("fail", what, "PFL_TRACEBACK=1 pfl invoke --id x", 1))
        return found

    @cached_property
    def results(self) -> Store:
        """The store."""
        from ..handler.core.store import objects

        return objects.of(self.chosen)

    @cached_property
    def api(self) -> Api:
        """Prefect's API: the configured one, or the embedded server if it runs."""
        from ..handler.engine.prefect import environment, server

        configured = environment.configured(self.chosen)
        if configured is not None:
            return configured
        running = server.find(self.chosen.home)
        if running is None:
            raise _SkippedError("not configured: the embedded server starts when it is needed")
        return environment.Api(running.url, "", "embedded server")

    def versions(self) -> Iterator[Finding]:
        """Whether the installed packages are supported ones."""
        import platform
        from importlib.metadata import requires, version

        from packaging.requirements import Requirement

        wrong = []
        for line in requires("prefect-lambda") or ():
            wanted = Requirement(line)
            if wanted.marker is not None:
                continue
            found = version(wanted.name)
            if not wanted.specifier.contains(found, prereleases=True):
                wrong.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
        if wrong:
            yield Finding("fail", "; ".join(wrong), "pip install -c constraints.txt -e .")
        else:
            packages = f"Prefect {version('prefect')}, obstore {version('obstore')}"
            yield _ok(f"Python {platform.python_version()}, {packages}")

    def dotenv(self) -> Iterator[Finding]:
        """The names in ``.env``, and who can read it."""
        path = self.chosen.root / ".env"
        if not path.is_file():
            raise _SkippedError(".env does not exist: settings come from the environment")
        from dotenv import dotenv_values

        from ..handler.core.settings import SETTINGS

        known = {setting.env for setting in SETTINGS.values()}
        names = [name for name in dotenv_values(path) if name.startswith("PFL_")]
        unknown = ", ".join(name for name in names if name not in known)
        if unknown:
            yield _warn(f"unknown setting {unknown}", "pfl config show lists the settings")
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            yield _warn(f".env has mode {mode:o}, others can read it", f"chmod 600 {path}")
        else:
            yield _ok(f".env has mode {mode:o}")

    def flows(self) -> Iterator[Finding]:
        """Whether the flows can be imported, and everything they use is known."""
        if self.loaded is None:
            raise self.load_error or AssertionError("load() comes first")
        for name, known in self.loaded.prints.items():
            places = sorted({f"{part.file}:{part.line}" for part in known.opaque})
            if places:
                what = f"{name} uses code that cannot be known: {', '.join(places)}"
                yield _warn(what, "@step(depends_on=[…]) or @step(version=…) declares it")
        yield _ok(", ".join(self.loaded.flows))

    def unstable(self) -> Iterator[Finding]:
        """Values that differ from process to process, so that a step never hits."""
        import subprocess
        import sys
        import tempfile
        from pathlib import Path

        from ..handler.core.store import records

        if self.loaded is None:
            return
        environ = {**os.environ, "PYTHONHASHSEED": "1", "PFL_PROJECT": str(self.chosen.root)}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "manifest")
            command = [sys.executable, "-m", "pfl.handler.bake", str(file)]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UnavailableError(
                    "the flows cannot be imported in a fresh process",
                    why=done.stderr.strip()[-300:],
                    hint="pfl plan shows the error",
                )
            parts = Path(f"{file}.parts")
            fresh = records.unseal(parts.read_bytes(), parts.name)
        unstable = []
        for name, known in self.loaded.prints.items():
            digests = {part["name"]: part["digest"] for part in fresh[name]["parts"]}
            changed = [part for part in known.parts if digests.get(part.name) != part.digest]
            # A function only differs because of a value that it reads; its source cannot.
            values = [part for part in changed if part.kind not in ("function", "class")]
            for part in values or changed:
                what = f"{name} never hits: {part.name} at {part.file}:{part.line} differs"
                unstable.append(_warn(what, "compute the value inside the step"))
        yield from unstable or [
            _ok(f"{len(fresh)} steps have the same fingerprint in each process")
        ]

    def prefect(self) -> Iterator[Finding]:
        """Whether Prefect answers, accepts the key, has a version that fits; and its clock."""
        import urllib.request
        from email.utils import parsedate_to_datetime
        from importlib.metadata import version

        from packaging.version import Version

        from ..handler.engine.prefect import client

        # Needs the key, if the server wants one.
        client.ask(self.api, "/flows/filter", {"limit": 1})
        yield _ok(f"{self.api.url} answers ({self.api.source})")
        theirs = client.ask(self.api, "/admin/version")
        ours = version("prefect")
        # Prefect Cloud has no version.
        if isinstance(theirs, str):
            versions = f"server {theirs}, client {ours}"
            if Version(theirs).release[:2] >= Version(ours).release[:2]:
                yield _ok(versions)
            else:
                fix = "upgrade the server, or install its version here"
                yield _warn(f"{versions}: the server is older", fix)
        with urllib.request.urlopen(f"{self.api.url}/health", timeout=10) as answer:
            there = parsedate_to_datetime(answer.headers["date"]).timestamp()
        yield _clock(there - time.time())

    def block(self) -> Iterator[Finding]:
        """Whether the storage block exists, leads to this store, and works."""
        from ..handler.engine.prefect import session
        from ..serverless import prefect_setup

        states = {
            "keep": "exists" if self.fast else "works",
            "create": "does not exist",
            "update": "leads to another place",
        }
        with session.session(self.chosen, lambda step, doing: None):
            for change, prove in prefect_setup.blocks(
                self.api, self.chosen, name="cache", with_keys=False
            ):
                if change.action == "keep" and not self.fast:
                    prove()
                what = f"{change.name} {states[change.action]}"
                yield _ok(what) if change.action == "keep" else _warn(what, "pfl setup blocks")
                for note in change.note.split("; "):
                    if "of another type" in note or "the same location" in note:
                        yield _warn(note, "keep the one that is used, and remove the other")

    def store(self) -> Iterator[Finding]:
        """Whether the store can be written, read, listed and deleted from; and its clock."""
        from ..handler.engine import check

        ahead_s = check.try_out(self.results)
        yield _ok(f"{self.results.url} is written, read, and created once only")
        yield _clock(ahead_s)

    def bucket(self) -> Iterator[Finding]:
        """Whether the bucket is private, encrypted, versioned, with a lifecycle."""
        if not self.chosen.store.startswith("s3://"):
            raise _SkippedError("the store is not a bucket")
        from ..serverless import aws

        name = self.chosen.store.removeprefix("s3://").partition("/")[0]
        client = aws.client("s3", attempts=2)
        with aws.converted_errors(f"bucket {name}"):
            client.head_bucket(Bucket=name)
        for state, (method, field, fix) in _BUCKET.items():
            found = None
            try:
                with aws.converted_errors(f"bucket {name}"):
                    found = getattr(client, method)(Bucket=name).get(field)
            except NotFoundError:
                pass
            except PflError as exc:
                yield Finding("skip", f"cannot check if {name} is {state}: {exc}")
                continue
            is_true = found and found != "Suspended"
            if state == "private":
                is_true = found and all(found.values())
            yield _ok(f"{name} is {state}") if is_true else _warn(f"{name} is not {state}", fix)

    def function(self) -> Iterator[Finding]:
        """Whether the function exists, has this code, and reaches the store and Prefect."""
        from ..serverless import remote

        target = remote.target(self.chosen)
        if target is None:
            raise _SkippedError("nothing is deployed from here: pfl invoke runs the handler itself")
        name = target.function
        reply: Mapping[str, Any] = remote.call(target, {"action": "check"})
        if error := reply.get("error"):
            what = f"{name}, from inside: {error['what']}: {error['why']}"
            yield Finding("fail", what, error["hint"] or "check its role and its variables", 5)
        elif self.loaded is None or reply.get("code") == self.loaded.manifest.digest:
            yield _ok(f"{name} reaches store and Prefect")
        else:
            yield _warn(f"{name} has other code than flows/ here", "pfl deploy")

    def worker(self) -> Iterator[Finding]:
        """Whether the work pool exists and has a worker."""
        from ..serverless import prefect_setup

        pool = self.chosen.work_pool
        found = prefect_setup.work_pool(self.api, pool)
        if found is None:
            what = f"work pool {pool} does not exist: Run in Prefect's UI has no effect"
            yield _warn(what, "pfl setup deployments, if you want it")
            return
        if found["is_paused"]:
            yield _warn(f"work pool {pool} is paused", f"prefect work-pool resume {pool}")
        alive = prefect_setup.workers(self.api, pool)
        what = f"{output.counted(len(alive), 'worker')} of {pool} alive"
        fix = 'pfl worker start, or the event {"action": "poll"} on a schedule'
        yield _ok(what) if alive else _warn(what, fix)

    def slots(self) -> Iterator[Finding]:
        """Slots of limits whose holders are dead."""
        from ..handler.engine.prefect import limits

        rows = list(limits.list_limits(self.api, self.results))
        leaked = sum(row["leaked"] for row in rows)
        what = f"{output.counted(leaked, 'slot')} leaked, of {output.counted(len(rows), 'limit')}"
        yield _warn(what, "pfl limits ls, pfl limits reset") if leaked else _ok(what)

    def stuck(self) -> Iterator[Finding]:
        """Calls that look alive, and whose process is dead."""
        from ..handler.core.cache import lease

        states = [lease.call_state(self.results, call) for call in lease.calls(self.results)]
        dead = [state for state in states if state.entries and not state.is_alive]
        what = f"{output.counted(len(dead), 'call')} died and must be cleaned up"
        yield _warn(what, "pfl runs reap") if dead else _ok("no call died unnoticed")


def _clock(ahead_s: float) -> Finding:
    what = f"clocks differ by {abs(ahead_s):.0f} s"
    if abs(ahead_s) <= _SKEW_S:
        return _ok(what)
    return _warn(what, "set this machine's clock: timedatectl set-ntp true")
