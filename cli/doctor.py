"""``pfl doctor``: checks everything that can be wrong, and prints what to do about it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from typer import Exit

from ..handler.core.cache import lease
from ..handler.core.declare import project
from ..handler.core.errors import InvalidRequestError, PflError, UnavailableError
from ..handler.core.settings import SETTINGS, Settings
from ..handler.core.store import objects
from ..handler.core.store.values import JsonObject
from ..handler.engine import check
from ..handler.engine.prefect import client, limits, runs
from ..handler.engine.prefect.environment import Api
from ..serverless import remote
from . import invoke, output, settings

# AWS refuses signatures that are 15 minutes off, and leases use the store's own clock.
_SKEW_S = 30
_CHECKS = (
    "versions",
    "dotenv",
    "prefect",
    "block",
    "store",
    "function",
    "worker",
    "slots",
    "stuck",
    "unstable",
)
# What a check found, and how to fix it; empty if it is right.
Findings = Iterator[tuple[str, str]]


class _SkippedError(Exception):
    """A check has nothing to do, for the reason in the message."""


def doctor(fast: bool = False) -> None:
    """
    Check the whole setup; the exit code is 0, or that of the first failure.

    Args:
        fast: Skip slow checks: unstable fingerprints, and the test of the block.
    """
    from concurrent.futures import ThreadPoolExecutor

    doc = Doctor(settings.load(), fast)
    with output.stdout_kept_for_data(), ThreadPoolExecutor(len(_CHECKS)) as pool:
        # First and in this thread: it imports the flows, and other checks need them.
        rows = doc.run("flows")
        for found in pool.map(doc.run, _CHECKS):
            rows += found
    output.print_rows(rows, ("check", "status", "what"))
    if not output.in_json:
        for fix in dict.fromkeys(f"{row['check']}: {row['fix']}" for row in rows if row["fix"]):
            output.say(fix)
    failed = [row for row in rows if row["status"] == "fail"]
    warned = output.counted(sum(row["status"] == "warn" for row in rows), "warning")
    output.say(f"{output.counted(len(rows), 'check')}, {len(failed)} failed, {warned}")
    if failed:
        raise Exit(failed[0]["exit_code"])


@dataclass
class Doctor:
    """The checks of one set of settings; a check yields what it found, or raises an error."""

    chosen: Settings
    fast: bool
    loaded: project.Project | None = None

    def run(self, name: str) -> list[JsonObject]:
        """The rows of a check; an exception becomes a row, and other checks continue."""
        rows: list[JsonObject] = []
        failure: JsonObject = {"status": "fail", "exit_code": 1}
        try:
            for what, fix in getattr(self, name)():
                rows.append({"status": "warn" if fix else "ok", "what": what, "fix": fix})
        except _SkippedError as exc:
            rows.append({"status": "skip", "what": str(exc), "fix": ""})
        except PflError as exc:
            hint = exc.hint or "check that the service is up; for its address: pfl config show"
            rows.append({**failure, "what": str(exc), "fix": hint, "exit_code": exc.exit_code})
        except Exception as exc:
            what = f"the check itself failed: {type(exc).__name__}: {exc}"
            rows.append({**failure, "what": what, "fix": "PFL_TRACEBACK=1 pfl invoke --id x"})
        return [{"check": name, "exit_code": 0, **row} for row in rows]

    @cached_property
    def results(self) -> objects.Store:
        """The store."""
        return objects.of(self.chosen)

    @cached_property
    def api(self) -> Api:
        """Prefect's API: the configured one, or the embedded server if it runs."""
        api = runs.find_api(self.chosen)
        if api is None:
            raise _SkippedError("not configured: the embedded server starts when it is needed")
        return api

    def versions(self) -> Findings:
        """Whether the installed packages are supported ones."""
        import platform
        from importlib.metadata import requires, version

        from packaging.requirements import Requirement

        for wanted in map(Requirement, requires("prefect-lambda") or ()):
            if wanted.marker is None:
                found = version(wanted.name)
                if not wanted.specifier.contains(found, prereleases=True):
                    raise InvalidRequestError(
                        f"{wanted.name} is {found}, but must be {wanted.specifier}",
                        hint="pip install -c constraints.txt -e .",
                    )
        packages = f"Prefect {version('prefect')}, obstore {version('obstore')}"
        yield f"Python {platform.python_version()}, {packages}", ""

    def dotenv(self) -> Findings:
        """The names in ``.env``, and who can read it."""
        path = self.chosen.root / ".env"
        if not path.is_file():
            raise _SkippedError(".env does not exist: settings come from the environment")
        from dotenv import dotenv_values

        known = {setting.env for setting in SETTINGS.values()}
        for name in dotenv_values(path):
            if name.startswith("PFL_") and name not in known:
                yield f"unknown setting {name}", "to list all settings: pfl config show"
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            yield f".env has mode {mode:o}, so others can read it", f"chmod 600 {path}"

    def flows(self) -> Findings:
        """Whether the flows can be imported, and their fingerprints are complete."""
        self.loaded = project.load(self.chosen)
        for name, known in self.loaded.prints.items():
            places = sorted({f"{part.file}:{part.line}" for part in known.opaque})
            if places:
                what = f"the fingerprint of {name} is incomplete: {', '.join(places)}"
                yield what, "declare it: @step(depends_on=[…]) or @step(version=…)"
        yield ", ".join(self.loaded.flows), ""

    def unstable(self) -> Findings:
        """Values that differ from process to process, so that a step never hits."""
        if self.fast or self.loaded is None:
            return
        unstable = invoke.find_unstable(self.loaded, self.chosen)
        for sentences in unstable.values():
            for sentence in sentences:
                yield sentence, "compute the value inside the step"
        if not any(unstable.values()):
            yield f"{len(unstable)} steps have the same fingerprint in each process", ""

    def prefect(self) -> Findings:
        """Whether Prefect answers and accepts the key, and its version and clock are right."""
        import urllib.request
        from email.utils import parsedate_to_datetime
        from importlib.metadata import version

        from packaging.version import Version

        # Needs the key, if the server wants one.
        client.ask(self.api, "/flows/filter", {"limit": 1})
        yield f"{self.api.url} answers ({self.api.source})", ""
        theirs = client.ask(self.api, "/admin/version")
        ours = version("prefect")
        # Prefect Cloud has no version.
        if isinstance(theirs, str):
            is_new = Version(theirs).release[:2] >= Version(ours).release[:2]
            fix = "" if is_new else "upgrade the server, or install its version"
            yield f"server {theirs}, client {ours}", fix
        with urllib.request.urlopen(f"{self.api.url}/health", timeout=10) as answer:
            there = parsedate_to_datetime(answer.headers["date"]).timestamp()
        yield _clock(there - time.time())

    def block(self) -> Findings:
        """Whether the storage block exists, points to this store, and works."""
        from ..handler.engine.prefect import session
        from ..serverless import prefect_setup

        # First, since it skips the check if there is no Prefect: the session would start a server.
        api = self.api
        with session.session(self.chosen, lambda step, doing: None):
            change = prefect_setup.block(api, self.chosen, name="cache", with_keys=False)
            if change.action == "create":
                yield f"{change.name} does not exist", "pfl setup blocks"
            elif change.action == "update":
                yield f"{change.name} points to another location", "pfl setup blocks"
            elif self.fast:
                yield f"{change.name} exists", ""
            else:
                change.make()
                yield f"{change.name} works", ""

    def store(self) -> Findings:
        """Whether the store accepts writes, reads, lists and deletes, and its clock is right."""
        ahead_s = check.try_out(self.results)
        yield f"{self.results.url} works, and creates objects only once", ""
        yield _clock(ahead_s)

    def function(self) -> Findings:
        """Whether the function exists, has this code, and reaches the store and Prefect."""
        target = remote.target(self.chosen)
        if target is None:
            raise _SkippedError("nothing is deployed from here: pfl invoke runs locally")
        name = target.function
        reply = remote.call(target, {"action": "check"})
        if error := reply.get("error"):
            raise UnavailableError(
                f"{name} reports: {error['what']}: {error['why']}",
                hint=error["hint"] or "check its role and environment",
            )
        if self.loaded is None or reply.get("code") == self.loaded.manifest.digest:
            yield f"{name} reaches the store and Prefect", ""
        else:
            yield f"the code of {name} differs from flows/ here", "pfl deploy"

    def worker(self) -> Findings:
        """Whether the work pool exists and has a worker."""
        from ..serverless import prefect_setup

        pool = self.chosen.work_pool
        found = prefect_setup.work_pool(self.api, pool)
        if found is None:
            what = f"work pool {pool} does not exist: Prefect's UI cannot run flows"
            yield what, "to create it: pfl setup deployments"
            return
        if found["is_paused"]:
            yield f"work pool {pool} is paused", f"prefect work-pool resume {pool}"
        alive = prefect_setup.workers(self.api, pool)
        fix = 'run pfl worker start, or send {"action": "poll"} on a schedule'
        what = f"{output.counted(len(alive), 'worker')} running for {pool}"
        yield what, "" if alive else fix

    def slots(self) -> Findings:
        """Concurrency slots whose holders are dead."""
        rows = list(limits.list_limits(self.api, self.results))
        leaked = sum(row["leaked"] for row in rows)
        what = f"{output.counted(leaked, 'slot')} leaked in {output.counted(len(rows), 'limit')}"
        yield what, "pfl limits ls, then pfl limits reset" if leaked else ""

    def stuck(self) -> Findings:
        """Calls that look alive, but whose process is dead."""
        calls = lease.open_calls(self.results).values()
        dead = [call for call in calls if not lease.is_call_alive(self.results, call)]
        what = f"{output.counted(len(dead), 'call')} died without being cleaned up"
        yield what, "pfl runs reap" if dead else ""


def _clock(ahead_s: float) -> tuple[str, str]:
    fix = "set this machine's clock: timedatectl set-ntp true"
    return f"clocks differ by {abs(ahead_s):.0f} s", fix if abs(ahead_s) > _SKEW_S else ""
