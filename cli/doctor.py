"""``pfl doctor``: everything that can be wrong, checked at once, each with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Annotated, NamedTuple

import typer
from pfl.cli import output, settings
from pfl.cli.options import Json
from pfl.handler.core.errors import PflError, UnavailableError

_SKEW_S = 30  # AWS refuses signatures that are 15 minutes off; leases go by the store's own clock.
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Leave out what takes seconds: unstable fingerprints, and the block tried out.",
    ),
]


class Row(NamedTuple):
    """What one check found: ``ok``, ``warn``, ``fail`` or ``skip``, in words, what to do about it, and the exit code it asks for."""

    check: str
    status: str
    what: str
    fix: str = ""
    code: int = 2


def _judged(check: str, is_good: object, good: str, bad: str, fix: str) -> Row:
    return Row(check, "ok", good) if is_good else Row(check, "warn", bad, fix)


def doctor(fast: Fast = False, json: Json = False) -> None:
    """Check everything that can be wrong, and say what to do; exit 0 if nothing is, else with the code of the first that is."""
    from concurrent.futures import ThreadPoolExecutor

    chosen = settings.load()
    doc = Doctor(chosen, fast)
    checks = [
        doc.versions,
        doc.dotenv,
        doc.flows,
        doc.prefect,
        doc.block,
        doc.store,
        doc.bucket,
        doc.function,
        doc.worker,
        doc.slots,
        doc.stuck,
    ]
    if not fast:
        checks.append(doc.unstable)
    rows: list[Row] = []
    with output.stdout_kept_for_data():
        doc.load()
        with ThreadPoolExecutor(len(checks)) as pool:
            for future in [pool.submit(_asked, check) for check in checks]:
                rows += future.result()
    if json:
        for row in rows:
            output.emit({name: value for name, value in row._asdict().items() if name != "code"})
    else:
        output.table(
            ["check", "status", "found"], [(row.check, row.status, row.what) for row in rows]
        )
        for line in dict.fromkeys(f"{row.check}: {row.fix}" for row in rows if row.fix):
            output.say(output.printable(line))
    failed = [row for row in rows if row.status == "fail"]
    warned = sum(row.status == "warn" for row in rows)
    output.say(f"{len(rows)} checks, {len(failed)} failed, {warned} to look at")
    if failed:
        raise typer.Exit(failed[0].code)


def _asked(check: Callable[[], Iterator[Row]]) -> list[Row]:
    name, rows = check.__name__, []
    try:
        rows += check()
    except PflError as exc:
        rows.append(
            Row(
                name,
                "fail",
                str(exc),
                exc.hint or "is it up, and its address right? pfl config show",
                exc.exit_code,
            )
        )
    except Exception as exc:  # A check that breaks says so, and leaves the others alone.
        rows.append(
            Row(
                name,
                "fail",
                f"the check broke: {type(exc).__name__}: {exc}",
                "PFL_TRACEBACK=1 pfl invoke --id x shows more",
                1,
            )
        )
    return rows


class Doctor:
    """The checks, on one set of settings; each yields its rows, and raises what it cannot go on after."""

    def __init__(self, chosen, fast: bool) -> None:
        self.chosen, self.fast = chosen, fast
        self.loaded = self.trouble = None

    def load(self) -> None:
        """Import the flows, once and in this thread, as several checks need them."""
        from pfl.handler.core.declare import project

        try:
            self.loaded = project.load(self.chosen)
        except PflError as exc:
            self.trouble = exc

    @cached_property
    def results(self):
        """The store."""
        from pfl.handler.core.store import objects

        return objects.of(self.chosen)

    @cached_property
    def api(self):
        """Prefect's API: the one that is set, or the embedded server where it runs."""
        from pfl.handler.engine.prefect import environment, server

        found = environment.configured(self.chosen)
        if found is None and (running := server.find(self.chosen.home)) is not None:
            found = environment.Api(running.url, "", "embedded server")
        return found

    def versions(self) -> Iterator[Row]:
        """What is installed, against what is supported."""
        import platform
        from importlib.metadata import requires, version

        from packaging.requirements import Requirement

        wrong = []
        for line in requires("prefect-lambda") or ():
            wanted = Requirement(line)
            if wanted.marker is None and not wanted.specifier.contains(
                found := version(wanted.name), prereleases=True
            ):
                wrong.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
        if wrong:
            yield Row("versions", "fail", "; ".join(wrong), "pip install -c constraints.txt -e .")
        else:
            yield Row(
                "versions",
                "ok",
                f"Python {platform.python_version()}, Prefect {version('prefect')}, obstore {version('obstore')}",
            )

    def dotenv(self) -> Iterator[Row]:
        """Its names, and who can read it."""
        path = self.chosen.root / ".env"
        if not path.is_file():
            yield Row("dotenv", "skip", "there is no .env: the environment and the defaults count")
            return
        from dotenv import dotenv_values
        from pfl.handler.core.settings import SETTINGS

        known = {setting.env for setting in SETTINGS.values()}
        if odd := [
            name for name in dotenv_values(path) if name.startswith("PFL_") and name not in known
        ]:
            yield Row(
                "dotenv",
                "warn",
                f"no setting is called {', '.join(odd)}",
                "pfl config show lists them",
            )
        said = f".env has mode {path.stat().st_mode & 0o777:o}"
        yield _judged(
            "dotenv",
            not path.stat().st_mode & 0o077,
            said,
            f"{said}, others can read it",
            f"chmod 600 {path}",
        )

    def flows(self) -> Iterator[Row]:
        """Whether they can be imported, and known whole."""
        if self.trouble is not None:
            raise self.trouble
        for name, known in self.loaded.prints.items():
            if places := sorted({f"{part.file}:{part.line}" for part in known.opaque}):
                yield Row(
                    "flows",
                    "warn",
                    f"{name} cannot be known whole: {', '.join(places)}",
                    "@step(depends_on=[…]) or @step(version=…) declares it",
                )
        yield Row("flows", "ok", ", ".join(self.loaded.flows))

    def unstable(self) -> Iterator[Row]:
        """Values that differ from process to process, so that a step never hits."""
        import json
        import subprocess
        import sys

        if self.loaded is None:
            return
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environ = os.environ | {
            "PYTHONPATH": path,
            "PYTHONHASHSEED": "1",
            "PFL_PROJECT": str(self.chosen.root),
        }
        script = "import json; from pfl.handler.core import settings; from pfl.handler.core.declare import project; found = project.load(settings.of_process()).prints; print(); "
        script += "print(json.dumps({name: each.to_json() for name, each in found.items()}))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UnavailableError(
                "the flows cannot be imported in a fresh process",
                why=done.stderr.strip()[-300:],
                hint="pfl plan shows the error",
            )
        fresh, found = json.loads(done.stdout.splitlines()[-1]), False
        for name, known in self.loaded.prints.items():
            theirs = {part["name"]: part["digest"] for part in fresh[name]["parts"]}
            changed = [part for part in known.parts if theirs.get(part.name) != part.digest]
            # A function is no cause when only what it reads differs; its own source cannot.
            for part in [
                part for part in changed if part.kind not in ("function", "class")
            ] or changed:
                found = True
                yield Row(
                    "unstable",
                    "warn",
                    f"{name} never hits: {part.name} at {part.file}:{part.line}",
                    "make that value inside the step",
                )
        if not found:
            yield Row(
                "unstable", "ok", f"{len(fresh)} steps have the same fingerprint in each process"
            )

    def prefect(self) -> Iterator[Row]:
        """Whether it answers, knows us, and is of a version that fits; and its clock."""
        import time
        import urllib.request
        from email.utils import parsedate_to_datetime
        from importlib.metadata import version

        from packaging.version import Version
        from pfl.handler.engine.prefect import client as prefect_api

        if self.api is None:
            yield Row("prefect", "ok", "none is set: the embedded server starts when it is needed")
            return
        prefect_api.ask(self.api, "/flows/filter", {"limit": 1})  # Needs a key, where there is one.
        yield Row("prefect", "ok", f"{self.api.url} answers ({self.api.source})")
        theirs, mine = prefect_api.ask(self.api, "/admin/version"), version("prefect")
        if isinstance(theirs, str):  # Cloud has none.
            said = f"server {theirs}, client {mine}"
            fits = Version(theirs).release[:2] >= Version(mine).release[:2]
            yield _judged(
                "prefect",
                fits,
                said,
                f"{said}: the server is older",
                "upgrade the server, or install its version here",
            )
        with urllib.request.urlopen(f"{self.api.url}/health", timeout=10) as answer:
            yield _clock(
                "prefect", parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
            )

    def block(self) -> Iterator[Row]:
        """The storage block: there, of this store, and working."""
        if self.api is None:
            yield Row("block", "skip", "no Prefect runs")
            return
        from pfl.handler.engine.prefect import session
        from pfl.serverless import prefect_setup

        words = {
            "keep": "is there" if self.fast else "works",
            "create": "is not there",
            "update": "is of another place",
        }
        with session.session(self.chosen, lambda step, doing: None):
            for change in prefect_setup.blocks(
                self.api,
                self.chosen,
                name="cache",
                with_keys=False,
                dry_run=True,
                prove=not self.fast,
            ):
                said = f"{change.name} {words[change.action]}"
                yield _judged("block", change.action == "keep", said, said, "pfl setup blocks")
                for note in change.note.split("; "):
                    if "of another type" in note or "the same location" in note:
                        yield Row(
                            "block", "warn", note, "keep the one that is used, and remove the other"
                        )

    def store(self) -> Iterator[Row]:
        """Written, read, created once only, listed and deleted; and its clock."""
        from pfl.handler.engine import check

        ahead_s = check.try_out(self.results)
        yield Row("store", "ok", f"{self.results.url} is written, read, and created once only")
        yield _clock("store", ahead_s)

    def bucket(self) -> Iterator[Row]:
        """Private, encrypted, versioned, with a lifecycle."""
        if not self.chosen.store.startswith("s3://"):
            yield Row("bucket", "skip", "the store is no bucket")
            return
        from botocore.exceptions import BotoCoreError, ClientError
        from pfl.serverless import aws

        name = self.chosen.store.removeprefix("s3://").partition("/")[0]
        client = aws.client("s3", attempts=2)
        with aws.converted_errors(f"bucket {name}"):
            client.head_bucket(Bucket=name)
        asked = {
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
                "aws s3api put-bucket-versioning: a deleted object can be had back",
            ),
            "with a lifecycle": (
                "get_bucket_lifecycle_configuration",
                "Rules",
                "aws s3api put-bucket-lifecycle-configuration, for old versions",
            ),
        }
        for word, (verb, field, fix) in asked.items():
            try:
                found = getattr(client, verb)(Bucket=name).get(field)
            except (ClientError, BotoCoreError) as exc:
                if not isinstance(exc, ClientError) or not aws.code(exc).startswith(
                    ("NoSuch", "ServerSideEncryptionConfigurationNotFound")
                ):
                    yield Row(
                        "bucket",
                        "skip",
                        f"{name}: whether it is {word} may not be asked: {exc}"[:200],
                    )
                    continue
                found = None
            is_so = found and found != "Suspended" and (word != "private" or all(found.values()))
            yield _judged("bucket", is_so, f"{name} is {word}", f"{name} is not {word}", fix)

    def function(self) -> Iterator[Row]:
        """The function: there, of this code, and allowed to reach the store and Prefect, which it tries itself."""
        from pfl.serverless import remote

        at = remote.target(self.chosen)
        if at is None:
            yield Row(
                "function", "skip", "none is deployed from here: pfl invoke runs the handler itself"
            )
            return
        reply = remote.call(at, {"action": "check"}).reply or {}
        if error := reply.get("error"):
            yield Row(
                "function",
                "fail",
                f"{at.function}, from inside: {error['what']}: {error['why']}",
                error["hint"] or "check its role and its variables",
                5,
            )
            return
        same = self.loaded is None or reply.get("code") == self.loaded.manifest.digest
        yield _judged(
            "function",
            same,
            f"{at.function} reaches store and Prefect",
            f"{at.function} has other code than flows/ here",
            "pfl deploy",
        )

    def worker(self) -> Iterator[Row]:
        """The work pool, and somebody who looks at it."""
        from pfl.serverless import prefect_setup

        if self.api is None:
            yield Row("worker", "skip", "no Prefect runs")
            return
        pool = self.chosen.work_pool
        if (found := prefect_setup.work_pool(self.api, pool)) is None:
            yield Row(
                "worker",
                "warn",
                f"there is no work pool {pool}: Run in Prefect's UI is dead",
                "pfl setup deployments, if you want it",
            )
            return
        if found["is_paused"]:
            yield Row(
                "worker",
                "warn",
                f"the work pool {pool} is paused",
                f"prefect work-pool resume {pool}",
            )
        said = f"{len(alive := prefect_setup.workers(self.api, pool))} workers of {pool} are alive"
        yield _judged(
            "worker",
            alive,
            said,
            said,
            'pfl worker start, or the event {"action": "poll"} on a schedule',
        )

    def slots(self) -> Iterator[Row]:
        """Slots of limits whose holders are dead."""
        from pfl.handler.engine.prefect import limits

        if self.api is None:
            yield Row("slots", "skip", "no Prefect runs")
            return
        rows = list(limits.list_limits(self.api, self.results))
        leaked = sum(row["leaked"] for row in rows)
        said = f"{leaked} slots leaked, of {len(rows)} limits"
        yield _judged("slots", not leaked, said, said, "pfl limits ls, pfl limits reset")

    def stuck(self) -> Iterator[Row]:
        """Calls and runs that look alive and whose process is dead."""
        from pfl.handler.core.cache import lease

        lives = [lease.call_state(self.results, call) for call in lease.calls(self.results)]
        said = f"{(dead := sum(bool(life.entries) and not life.is_alive for life in lives))} calls died and are not buried"
        yield _judged("stuck", not dead, said, said, "pfl runs reap")


def _clock(who: str, ahead_s: float) -> Row:
    said = f"clocks differ by {abs(ahead_s):.0f} s"
    return _judged(
        who,
        abs(ahead_s) <= _SKEW_S,
        said,
        said,
        "set this machine's clock: timedatectl set-ntp true",
    )
