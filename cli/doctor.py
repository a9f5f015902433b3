"""``pfl doctor``: everything that can be wrong, checked at once, each with what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import typer

from cli import output, settings
from cli.invoke import Json
from handler.core.errors import InvalidRequestError, PflError

_SKEW_S = 30  # AWS refuses signatures that are 15 minutes off; leases go by the store's own clock.
Fast = Annotated[bool, typer.Option("--fast", help="Leave out what takes seconds: unstable fingerprints, and the block tried out.")]


class Row(NamedTuple):
    """What one check found: ``ok``, ``warn``, ``fail`` or ``skip``, in words, what to do about it, and the exit code it asks for."""

    check: str
    status: str
    what: str
    fix: str = ""
    code: int = 2


def doctor(fast: Fast = False, json: Json = False) -> None:
    """Check everything that can be wrong, and say what to do; exit 0 if nothing is, else with the code of the first that is."""
    from concurrent.futures import ThreadPoolExecutor

    chosen = settings.load()
    doc = Doctor(chosen, fast)
    checks = [doc.versions, doc.dotenv, doc.flows, doc.prefect, doc.block, doc.store, doc.bucket, doc.function, doc.worker, doc.slots, doc.stuck]
    if not fast:
        checks.append(doc.unstable)
    rows: list[Row] = []
    with output.stdout_kept_for_data():
        doc.prepare()
        with ThreadPoolExecutor(len(checks)) as pool:
            for future in [pool.submit(_asked, check) for check in checks]:
                rows += future.result()
    if json:
        for row in rows:
            output.emit({name: value for name, value in row._asdict().items() if name != "code"})
    else:
        output.table(["check", "status", "found"], [(row.check, row.status, row.what) for row in rows])
        for line in dict.fromkeys(f"{row.check}: {row.fix}" for row in rows if row.fix and row.status in ("warn", "fail")):
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
        rows.append(Row(name, "fail", str(exc), exc.hint, exc.exit_code))
    except Exception as exc:  # A check that breaks says so, and leaves the others alone.
        rows.append(Row(name, "fail", f"the check broke: {type(exc).__name__}: {exc}", "PFL_TRACEBACK=1 pfl invoke --id x shows more", 1))
    return rows


class Doctor:
    """The checks, on one set of settings; each yields its rows, and raises what it cannot go on after."""

    def __init__(self, chosen, fast: bool) -> None:
        self.chosen, self.fast = chosen, fast
        self.api = self.loaded = self.trouble = None

    def prepare(self) -> None:
        """What several checks need, found once."""
        from handler.core import project
        from handler.engine import prefect_env, server

        self.api = prefect_env.configured(self.chosen)
        if self.api is None and (running := server.find(self.chosen.home)) is not None:
            self.api = prefect_env.Api(running.url, "", "embedded server")
        try:
            self.loaded = project.load(self.chosen)
        except PflError as exc:
            self.trouble = exc

    def versions(self) -> Iterator[Row]:
        """What is installed, against what is supported."""
        import platform
        from importlib.metadata import requires, version

        from packaging.requirements import Requirement

        wrong = []
        for line in requires("pfl") or ():
            wanted = Requirement(line)
            if wanted.marker is None and not wanted.specifier.contains(found := version(wanted.name), prereleases=True):
                wrong.append(f"{wanted.name} is {found}, wanted {wanted.specifier}")
        said = f"Python {platform.python_version()}, Prefect {version('prefect')}, obstore {version('obstore')}"
        yield Row("versions", "fail" if wrong else "ok", "; ".join(wrong) or said, "pip install -c constraints.txt -e .")

    def dotenv(self) -> Iterator[Row]:
        """Its names, and who can read it."""
        path = self.chosen.root / ".env"
        if not path.is_file():
            yield Row("dotenv", "skip", "there is no .env: the environment and the defaults count")
            return
        from dotenv import dotenv_values

        from handler.core.settings import KNOBS

        known = {knob.env for knob in KNOBS.values()}
        if odd := [name for name in dotenv_values(path) if name.startswith("PFL_") and name not in known]:
            yield Row("dotenv", "warn", f"no setting is called {', '.join(odd)}", "pfl config show lists them")
        mode = path.stat().st_mode & 0o777
        yield Row("dotenv", "warn" if mode & 0o077 else "ok", f".env has mode {mode:o}" + (", others can read it" if mode & 0o077 else ""), f"chmod 600 {path}")

    def flows(self) -> Iterator[Row]:
        """Whether they can be imported, and known whole."""
        if self.trouble is not None:
            raise self.trouble
        for name, known in self.loaded.prints.items():
            places = sorted({f"{part.file}:{part.line}" for part in known.opaque})
            if places:
                yield Row("flows", "warn", f"{name} cannot be known whole: {', '.join(places)}", "@step(depends_on=[…]) or @step(version=…) declares it")
        yield Row("flows", "ok", ", ".join(self.loaded.flows))

    def unstable(self) -> Iterator[Row]:
        """Values that differ from process to process, so that a step never hits."""
        if self.loaded is None:
            return
        from concurrent.futures import ThreadPoolExecutor

        from handler.core import fingerprint

        steps = {step.name: step.function for flow in self.loaded.flows.values() for step in flow.steps.values()}
        found = False
        with ThreadPoolExecutor(2) as pool:
            for name, parts in zip(steps, pool.map(fingerprint.unstable, steps.values()), strict=True):
                for part in parts:
                    found = True
                    yield Row("unstable", "warn", f"{name} never hits: {part.name} at {part.file}:{part.line}", "make that value inside the step")
        if not found:
            yield Row("unstable", "ok", f"{len(steps)} steps have the same fingerprint in each process")

    def prefect(self) -> Iterator[Row]:
        """Whether it answers, knows us, and is of a version that fits; and its clock."""
        import urllib.request
        from email.utils import parsedate_to_datetime
        from importlib.metadata import version

        from handler.engine import prefect_api

        if self.api is None:
            yield Row("prefect", "ok", "none is set: the embedded server starts when it is needed")
            return
        prefect_api.ask(self.api, "/flows/filter", {"limit": 1})  # Needs a key, where there is one.
        yield Row("prefect", "ok", f"{self.api.url} answers ({self.api.source})")
        theirs, mine = prefect_api.ask(self.api, "/admin/version"), version("prefect")
        if isinstance(theirs, str):
            fits = theirs.split(".")[:2] >= mine.split(".")[:2] or tuple(map(int, theirs.split(".")[:2])) >= tuple(map(int, mine.split(".")[:2]))
            words = f"server {theirs}, client {mine}"
            yield Row("prefect", "ok" if fits else "warn", words + ("" if fits else ": the server is older"), "upgrade the server, or install its version here")
        with urllib.request.urlopen(f"{self.api.url}/health", timeout=10) as answer:
            yield self._clock("prefect", parsedate_to_datetime(answer.headers["date"]).timestamp())

    def _clock(self, who: str, theirs: float) -> Row:
        import time

        off = time.time() - theirs
        is_off = abs(off) > _SKEW_S
        return Row(who, "warn" if is_off else "ok", f"clocks differ by {abs(off):.0f} s", "set this machine's clock: timedatectl set-ntp true")

    def block(self) -> Iterator[Row]:
        """The storage block: there, of this store, and working."""
        if self.api is None:
            yield Row("block", "skip", "no Prefect runs")
            return
        from handler.engine import prefect_run
        from serverless import prefect_setup

        if self.fast:
            kind = "s3-bucket" if self.chosen.store.startswith("s3://") else "local-file-system"
            there = prefect_setup._block(self.api, kind, "cache") is not None
            yield Row("block", "ok" if there else "warn", f"{kind}/cache is {'' if there else 'not '}there", "pfl setup blocks")
            return
        with prefect_run.session(self.chosen, lambda step, doing: None):
            for change in prefect_setup.blocks(self.api, self.chosen, name="cache", with_keys=False, dry_run=True, prove=True):
                words = {"keep": f"{change.name} works", "create": f"{change.name} is not there", "update": f"{change.name} is of another place"}
                yield Row("block", "ok" if change.action == "keep" else "warn", words[change.action], "pfl setup blocks")
                if "of another type" in change.note:
                    yield Row("block", "warn", change.note.split("; ")[-1], "remove the one that nobody uses")

    def store(self) -> Iterator[Row]:
        """Written, read, created once only, and deleted; and its clock."""
        import secrets
        import time

        from handler.core import store as stores
        from handler.core.store import AlreadyExistsError

        results, key = stores.of(self.chosen), f"setup/doctor-{secrets.token_hex(8)}"
        try:
            results.put(key, b"1", mode="create")
            written = time.time()
            try:
                results.put(key, b"2", mode="create")
                yield Row("store", "fail", "a create overwrites: two calls may compute the same step", "use S3 itself, or a server with If-None-Match")
            except AlreadyExistsError:
                yield Row("store", "ok", f"{results.url} is written, read, and created once only")
            found = next((entry.modified for entry in results.list("setup") if entry.key == key), None)
            if found is not None:
                yield self._clock("store", found + time.time() - written)
        finally:
            results.delete([key])

    def bucket(self) -> Iterator[Row]:
        """Private, encrypted, versioned, with a lifecycle."""
        if not self.chosen.store.startswith("s3://"):
            yield Row("bucket", "skip", "the store is no bucket")
            return
        from botocore.exceptions import BotoCoreError, ClientError

        from serverless import aws

        name = self.chosen.store.removeprefix("s3://").partition("/")[0]
        client = aws.client("s3", region=os.environ.get("AWS_REGION", ""), attempts=2)
        with aws.told(f"bucket {name}"):
            client.head_bucket(Bucket=name)

        def asked(verb: str, field: str) -> object:
            try:
                return getattr(client, verb)(Bucket=name).get(field)
            except ClientError as exc:
                kind = aws.code(exc)
                return None if kind.startswith(("NoSuch", "ServerSideEncryptionConfigurationNotFound")) else exc
            except BotoCoreError as exc:
                return exc

        shut = asked("get_public_access_block", "PublicAccessBlockConfiguration")
        found = {
            "private": (shut if isinstance(shut, Exception) else bool(shut) and all(shut.values()), "aws s3api put-public-access-block"),
            "encrypted": (asked("get_bucket_encryption", "ServerSideEncryptionConfiguration"), "aws s3api put-bucket-encryption"),
            "versioned": (asked("get_bucket_versioning", "Status") or False, "aws s3api put-bucket-versioning: a deleted object can be had back"),
            "with a lifecycle": (asked("get_bucket_lifecycle_configuration", "Rules"), "aws s3api put-bucket-lifecycle-configuration, for old versions"),
        }
        for word, (answer, fix) in found.items():
            if isinstance(answer, Exception):
                yield Row("bucket", "skip", f"{name}: whether it is {word} may not be asked: {answer}"[:200])
            else:
                yield Row("bucket", "ok" if answer not in (None, False, "Suspended") else "warn", f"{name} is {'' if answer not in (None, False, 'Suspended') else 'not '}{word}", fix)

    def function(self) -> Iterator[Row]:
        """The function: there, of this code, and allowed to reach the store and Prefect, which it tries itself."""
        from serverless import remote

        at = remote.target(self.chosen)
        if at is None:
            yield Row("function", "skip", "none is deployed from here: pfl invoke runs the handler itself")
            return
        reply = remote.call(at, {"action": "check"}).reply or {}
        if error := reply.get("error"):
            yield Row("function", "fail", f"{at.function}, from inside: {error['what']}: {error['why']}", error["hint"] or "check its role and its variables", 5)
            return
        same = self.loaded is None or reply.get("code") == self.loaded.manifest.digest
        yield Row("function", "ok" if same else "warn", f"{at.function} reaches store and Prefect" if same else f"{at.function} has other code than flows/ here", "pfl deploy")

    def worker(self) -> Iterator[Row]:
        """The work pool, and somebody who looks at it."""
        from urllib.parse import quote

        from handler.engine import prefect_api

        if self.api is None:
            yield Row("worker", "skip", "no Prefect runs")
            return
        pool = self.chosen.work_pool
        found = prefect_api.ask(self.api, f"/work_pools/{quote(pool)}")
        if found is None:
            yield Row("worker", "warn", f"there is no work pool {pool}: Run in Prefect's UI is dead", "pfl setup deployments, if you want it")
            return
        if found["type"] != "aws-lambda":
            raise InvalidRequestError(f"the work pool {pool} is of type {found['type']}", hint="PFL_WORK_POOL=another")
        workers = prefect_api.ask(self.api, f"/work_pools/{quote(pool)}/workers/filter", {}) or []
        alive = [each["name"] for each in workers if each["status"] == "ONLINE"]
        fix = 'pfl worker start, or the event {"action": "poll"} on a schedule'
        yield Row("worker", "ok" if alive else "warn", f"{len(alive)} workers of {pool} are alive", fix)

    def slots(self) -> Iterator[Row]:
        """Slots of limits whose holders are dead."""
        from handler.core import store as stores
        from handler.engine import limits

        if self.api is None:
            yield Row("slots", "skip", "no Prefect runs")
            return
        rows = list(limits.ls(self.api, stores.of(self.chosen)))
        leaked = sum(row["leaked"] for row in rows)
        yield Row("slots", "warn" if leaked else "ok", f"{leaked} slots leaked, of {len(rows)} limits", "pfl limits ls, pfl limits reset")

    def stuck(self) -> Iterator[Row]:
        """Calls and runs that look alive and whose process is dead."""
        from handler.core import lease
        from handler.core import store as stores

        results = stores.of(self.chosen)
        dead = [call for call in lease.calls(results) if (life := lease.life_of(results, call)).entries and not life.is_alive]
        yield Row("stuck", "warn" if dead else "ok", f"{len(dead)} calls died and are not buried", "pfl runs reap")
