"""
Prints what a hit costs next to the least that could answer it.

    python tests/bench_cache.py [--objects 1000000]

Each row compares two things in one run on one machine, taking turns, by their medians. pytest
collects nothing here.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import obstore
import servers

from pfl.handler import entry
from pfl.handler.core import event
from pfl.handler.core.cache import bust, inspection
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.declare import catalog
from pfl.handler.core.settings import Settings, of_process
from pfl.handler.core.store import objects, records
from pfl.handler.core.store.keys import value_digest

_GET = (
    "import obstore; from obstore.store import LocalStore; "
    "obstore.get(LocalStore({place!r}), {key!r}).bytes()"
)
_HIT = (
    "from pfl.handler.entry import lambda_handler; r = lambda_handler({'id': 'abc'}); "
    "assert r['store'] == {'get': 1}, r"
)
_CLI = "from pfl.cli.main import main; main(['invoke', '--id', 'abc', '--json'])"
_PREFECT = """
from prefect import flow, task
from prefect.cache_policies import INPUTS

@task(cache_policy=INPUTS, persist_result=True)
def a(id): return 1234
@task(cache_policy=INPUTS, persist_result=True)
def b(id, a): return a / 3
@task(cache_policy=INPUTS, persist_result=True)
def c(id, b): return b * 10
@flow
def meaning(id):
    first = a(id)
    return c(id, b(id, first))

assert meaning("abc") > 4000
"""


def taking_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The median time of each, in milliseconds."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            found.append((time.perf_counter() - started) * 1e3)
    return [statistics.median(each) for each in times]


def row(what: str, ms: float, against: str, base_ms: float, target: str) -> None:
    ratio = ms / base_ms
    print(
        f"| {what} | {ms:.3g} ms | {against} | {base_ms:.3g} ms | {ratio:.3g} × | {target} |",
        flush=True,
    )


def process(*words: str, environ: dict[str, str]) -> Callable[[], object]:
    return lambda: subprocess.run(
        [sys.executable, *words],
        check=True,
        env=environ,
        cwd=environ["PFL_PROJECT"],
        capture_output=True,
    )


class Context:
    """Lambda's context object; with it, each call writes its line to the log."""

    aws_request_id = "8f4c2f6e-7a0f-4d8e-9a57-0f4f7f0b6b1d"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def plan_paths(settings: Settings, ids: list[str]) -> list[str]:
    """Where a hit on the default flow's last step reads, for each ID."""
    requests = [event.parse({"id": id}, catalog.load(settings)) for id in ids]
    return [records.plan_path(r.id, r.targets[0], r.plan_key(r.targets[0])) for r in requests]


def warm(name: str, settings: Settings, backend: object, ids: list[str], rounds: int) -> None:
    """A warm hit of three steps, of another ID each time, next to one GET of the same bytes."""
    os.environ |= {
        "PFL_STORE": settings.store,
        "PFL_MANIFEST": settings.manifest,
        "PFL_ENGINE": "direct",
    }
    of_process.cache_clear()
    order = random.Random(1).sample(range(len(ids)), len(ids))
    keys, hits, gets, context = (
        plan_paths(settings, ids),
        itertools.cycle(order),
        itertools.cycle(order),
        Context(),
    )
    with open(os.devnull, "w") as log, contextlib.redirect_stdout(log):
        replies = [
            entry.lambda_handler({"id": id}, context) for id in ids
        ]  # Computed, if it is not there.
        works = (
            lambda: entry.lambda_handler({"id": ids[next(hits)]}, context),
            lambda: obstore.get(backend, keys[next(gets)]).bytes(),
        )
        assert all(reply["status"] == "completed" for reply in replies) and works[0]()["store"] == {
            "get": 1
        }
        hit, get = taking_turns(rounds, *works)
    row(f"warm hit of three steps, {name}, {len(ids):,} IDs", hit, "one obstore GET", get, "≤ 1.3")


def cold(place: Path, settings: Settings, environ: dict[str, str], rounds: int) -> None:
    """A fresh process that answers a hit, against the least one."""
    key = next(Path(settings.store).glob("plans/abc/c/*.json")).relative_to(settings.store)
    library = next(path for path in sys.path if path.endswith("site-packages"))
    least = f"import sys; sys.path.append({library!r}); " + _GET.format(
        place=settings.store, key=str(key)
    )
    for package in ("handler", "cli"):  # As in the image.
        compileall.compile_dir(str(ROOT / package), quiet=2)
    hit, get = taking_turns(
        rounds, process("-c", _HIT, environ=environ), process("-S", "-c", least, environ=environ)
    )
    row("cold hit", hit, "`python -S`, one obstore GET", get, "≤ 2")
    cli, typer = taking_turns(
        rounds, process("-c", _CLI, environ=environ), process("-c", "import typer", environ=environ)
    )
    row("`pfl invoke`, a hit", cli, "`python -c 'import typer'`", typer, "≤ 3")
    with PrefectServers(place) as api:
        script = place / "plain.py"
        script.write_text(_PREFECT)
        plain = environ | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(place / "home"),
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        run = process(str(script), environ=plain)
        run()
        prefect, hit = taking_turns(3, run, process("-c", _HIT, environ=environ))
    row("cold hit", hit, "the same hit through plain Prefect", prefect, "≤ 1/15")


class PrefectServers:
    def __init__(self, place: Path) -> None:
        self.home = place / "server"

    def __enter__(self) -> str:
        from pfl.handler.engine.prefect import server

        return server.ensure(self.home, idle_s=600).url

    def __exit__(self, *exc: object) -> None:
        from pfl.handler.engine.prefect import server

        server.stop(self.home)


def fill(opened: objects.Store, numbers: range, directory: str, *, whole: int = 2_000) -> None:
    """
    Write small results and plans, fifty for each ID, straight into a directory.

    Behind the first *whole*, the objects are copies: nobody reads them.
    """
    data = {}
    for number in numbers:
        id, key, is_plan = f"id{number // 50:06}", f"{number:064x}", number % 2 == 0
        path = (records.plan_path if is_plan else records.result_path)(id, "b", key)
        if number < whole and is_plan:
            row = Entry("b", key, value_digest(1), 1, records.now_iso(), None, value=1)[:13]
            body = {
                "version": 3,
                "flow": "meaning",
                "id": id,
                "step": "b",
                "plan_key": key,
                "expires_at": None,
                "entries": [row],
            }
            data[is_plan] = records.seal(body)
        elif number < whole:
            data[is_plan] = records.encode_result(
                path, "1", {"id": id, "step": "b", "fingerprint": "f"}, None
            )
        if not directory:
            opened.put(path, data[is_plan])
            continue
        if number % 50 < 2:
            os.makedirs(os.path.dirname(f"{directory}/{path}"), exist_ok=True)
        with open(f"{directory}/{path}", "wb") as file:
            file.write(data[is_plan])


def scale(name: str, opened: objects.Store, counts: tuple[int, int], directory: str = "") -> None:
    """Listing and busting one ID in a small and a large store, and the memory that a walk needs."""
    found = []
    for count in counts:
        fill(opened, range(count), directory)
        times = []
        for number in range(9):
            id = f"id{number + 10 * len(found):06}"
            asked, started = sum(opened.counts.values()), time.perf_counter()
            assert (
                sum(1 for _ in inspection.entries(opened, id=id, flow=None, step=None, warn=print))
                == 25
            )
            listed = sum(opened.counts.values())
            listing = (time.perf_counter() - started) * 1e3
            started, scope = time.perf_counter(), bust.Scope(id, "", ("b",))
            assert sum(1 for _ in bust.list_results(opened, scope)) == 25
            assert (
                bust.bust(
                    opened, scope, bust.new_name(), dependents={"b"}, known={"b"}, retention_s=0
                )
                == 25
            )
            times.append(
                (
                    listing,
                    (time.perf_counter() - started) * 1e3,
                    listed - asked,
                    sum(opened.counts.values()) - listed,
                )
            )
        found.append([statistics.median(column) for column in zip(*times, strict=True)])
    small, large = f"{counts[0]:,} objects", f"{name}, {counts[1]:,} objects"
    for column, what in enumerate(("list one ID", "bust one ID")):
        row(f"{what}, {large}", found[1][column], small, found[0][column], "1")
    for column, what in enumerate(("requests of a list of one ID", "requests of its bust"), 2):
        print(
            f"| {what}, {large} | {found[1][column]:g} | {small} | {found[0][column]:g} "
            f"| {found[1][column] / found[0][column]:.2g} × | 1 |",
            flush=True,
        )


def peak_mib(environ: dict[str, str], *words: str) -> float:
    """The most memory a command had, in MiB."""
    code = "from pfl.cli.main import main; main()"
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=environ,
            cwd=environ["PFL_PROJECT"],
            stdout=nowhere,
            stderr=nowhere,
        )
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0, words
    return used.ru_maxrss / 1024


def memory(place: Path, counts: tuple[int, int], environ: dict[str, str]) -> None:
    """What ``ls`` and ``verify`` need of it, for a small store and a large one."""
    peaks: dict[str, list[float]] = {"ls": [], "verify": []}
    for count in counts:
        (place / str(count)).mkdir()
        fill(
            objects.open_store(str(place / str(count)), environ={}),
            range(count),
            str(place / str(count)),
            whole=count,
        )
        for verb, found in peaks.items():
            found.append(peak_mib(environ | {"PFL_STORE": str(place / str(count))}, "cache", verb))
    for verb, (small, large) in peaks.items():
        print(
            f"| memory of `pfl cache {verb}`, directory, {counts[1]:,} objects | {large:.0f} MiB "
            f"| {counts[0]:,} objects | {small:.0f} MiB | {large / small:.2g} × | 1 |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the large directory")
    parser.add_argument("--s3-objects", type=int, default=20_000, help="in the large bucket")
    parser.add_argument("--rounds", type=int, default=15, help="fresh processes for each row")
    chosen = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("PFL_", "PREFECT_", "AWS_"))]:
        del os.environ[name]
    place = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(
            ROOT / "flows", place / "flows", ignore=shutil.ignore_patterns("__pycache__")
        )
        (place / "store").mkdir()
        os.environ["PFL_PROJECT"] = str(place)
        catalog.load(Settings(project=str(place)))
        baked = str(place / "manifest.json")
        [remembered] = (place / ".pfl").glob("manifest-*.json")
        shutil.copy(remembered, baked)
        settings = Settings(
            project=str(place), manifest=baked, engine="direct", store=str(place / "store")
        )
        print(
            "| | median | against | median | ratio | target |\n"
            "| --- | ---: | --- | ---: | ---: | ---: |"
        )
        ids = ["abc", *(f"customer-{number:04}" for number in range(1, 1_000))]
        warm("directory", settings, obstore.store.LocalStore(place / "store"), ids, 3_000)
        environ = {**os.environ}
        cold(place, settings, environ, chosen.rounds)
        with servers.s3(page_objects=1_000) as url:
            keys = {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_REGION": "us-east-1",
            }
            os.environ |= keys
            import boto3

            boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(
                Bucket="bench"
            )
            on_s3 = Settings(
                project=str(place), manifest=baked, engine="direct", store="s3://bench/pfl"
            )
            opened = objects.open_store(on_s3.store, environ=os.environ)
            for key in plan_paths(settings, ids):
                opened.put(key, (place / "store" / key).read_bytes())
            warm("S3 (moto)", on_s3, opened._backend, ids, 500)
            scale("S3 (moto)", opened, (1_000, chosen.s3_objects))
        memory(place, (1_000, 50_000), environ)
        large = place / "large"
        large.mkdir()
        scale(
            "directory",
            objects.open_store(str(large), environ={}),
            (1_000, chosen.objects),
            str(large),
        )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
