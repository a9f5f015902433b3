"""
Nonsense in place of each stored object: every command goes on, or ends with an error of pfl.

Somebody else may be able to write to the store. So each kind of object is replaced by nonsense of
several sorts, most of it with a right digest, and every command that reads the store runs on it.
Nothing may hang, and nothing may raise anything but a PflError.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import typer

from pfl.cli import main as cli
from pfl.cli import output
from pfl.handler import entry
from pfl.handler.core import errors
from pfl.handler.core.cache import lease
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.objects import of as objects_of
from pfl.handler.core.store.values import MAX_DEPTH

FLOW = """
import os
import signal

from pfl import flow, step


@step
def a(id: str, previous=None) -> int:
    return len(id)


@step
def b(id: str, a: int, rate: float = 1.0) -> str:
    if id == "dead":
        os.kill(os.getpid(), signal.SIGKILL)
    return "x" * 40 + str(a)


FLOWS = [flow("f", a, b)]
"""
PFL = [sys.executable, "-c", "from pfl.cli.main import main; main()"]
KINDS = (
    *("accepted", "busts", "calls", "code", "history", "leases", "plans", "recent", "results"),
    *("values", "ids", "shared.json", "format.json"),
)
EVENTS: list[dict[str, object]] = [
    {"id": "abc"},
    {"id": "abc", "step": "a"},
    {"id": "abc", "cached_only": True},
    {"id": "abc", "skip": ["a"]},
    {"id": "abc", "params": {"rate": 2}},
    {"id": "zed"},
    {"id": "new"},
    {"action": "reap"},
    {"id": "abc", "bust": ["a"]},
]
FIRST = json.dumps(EVENTS[0])  # Whatever is damaged, it has an answer.
LINES = [
    "plan --id abc",
    "cache ls",
    "cache inspect --id abc",
    "cache why --id abc",
    "cache why --id zed --diff",
    "cache stats",
    "cache verify",
    "cache restore --dry-run",
    "cache bust --id abc --dry-run",
    "cache accept --step b --dry-run",
    "cache accept --step b --undo --dry-run",
    "history ls",
    "history ls --id abc --json",
    "history show --id abc RECORD",
    "history diff --id abc",
    "history bisect --id abc --step b",
    "history export --format jsonl",
    "history export --format csv",
    "history prune --older-than 0s --dry-run",
    "runs ls",
    "runs reap --dry-run",
    "limits ls",
    "cache bust --id abc --yes",
    "cache restore --id abc --yes",
    "cache verify --repair",
    "runs reap",
    "invoke --id abc --local",
    "history prune --older-than 0s --yes",
]
SLOW = ("runs ls", "limits ls")  # They connect to Prefect.
SETTINGS = {
    "PFL_ENGINE": "direct",
    "PFL_INLINE_BYTES": "30",
    # Nothing listens there.
    "PREFECT_API_URL": "http://127.0.0.1:9/api",
}
COMMAND = typer.main.get_command(cli.app)
LONGEST_S = 30
# How many changes of each sort are tried on an object.
PER_OBJECT = 4
# Which part of the commands runs on each of them.
SHARE = 0.2
KNOWN = {"PflError", *(name for name, value in vars(errors).items() if isinstance(value, type))}
WRONG = [None, True, -1, 10**30, 1e300, "", "\ud800", "../../../etc/passwd", [], [1], {}, "9" * 300]


SORTS = ("bytes", "json", "sealed", "other", "missing", "mistyped", "huge", "value")


def cases() -> Iterator[object]:
    """A case for each kind and sort, and one for all kinds at once."""
    for kind in (*KINDS, "all"):
        for sort in SORTS if kind != "all" else SORTS[:3]:
            if sort == "value" and kind != "results":
                continue
            yield pytest.param(kind, sort)


# Nonsense.


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def encoder(data: bytes) -> tuple[Callable[[dict], bytes], dict] | None:
    """What a stored object holds, and a function that stores it with a right digest."""
    try:
        whole = json.loads(data)
    except ValueError:
        return None
    if not isinstance(whole, dict):
        return None
    if whole.keys() == {"sha256", "body"}:
        return records.seal, whole["body"]
    return encode_result, whole


def encode_result(whole: dict) -> bytes:
    about, text, more = (whole.get(name) for name in ("metadata", "result", "pfl"))
    if isinstance(about, dict) and isinstance(text, str) and isinstance(more, dict):
        metadata = {name: more[name] for name in more if name not in ("version", "sha256")}
        sha256 = records._result_digest(text, about.get("expiration"), metadata)
        whole = {**whole, "pfl": {**more, "sha256": sha256}}
    return json.dumps(whole).encode()


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of each field and item in a JSON value."""
    named = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in named:
        yield (*path, name)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, name))


def changed(data: bytes, rng: random.Random, values: list[object]) -> Iterator[bytes]:
    """*data* with one of *values* in place of a field, for some of its fields; ``...``: removed."""
    if (found := encoder(data)) is None:
        return
    store, body = found
    every = [(path, value) for path in places(body) for value in values]
    for path, value in rng.sample(every, min(len(every), PER_OBJECT)):
        copy = json.loads(json.dumps(body))
        inner = copy
        for name in path[:-1]:
            inner = inner[name]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        yield store(copy)


def nonsense(sort: str, data: bytes, other: bytes, rng: random.Random) -> Iterator[bytes]:
    """What replaces an object that holds *data*; *other* is what another one holds."""
    match sort:
        case "bytes":
            yield from (b"", rng.randbytes(64), data[: len(data) // 2])
        case "json":
            yield from (b"null", b"{}", b"9" * 100_000, b"[" * 100_000)
        case "sealed":
            yield from map(records.seal, ({}, [], {"version": 99}, {"x": deep(900)}))
            yield sealed_text(b'{"x":1e999}')
        case "other":
            yield other
        case "missing":
            yield from changed(data, rng, [...])
        case "mistyped":
            yield from changed(data, rng, WRONG)
        case "huge":
            yield from changed(data, rng, [10**30, -(10**30), 1e300, deep(MAX_DEPTH - 20)])
        case "value":
            for text in ("1e999", "[" * 980 + "]" * 980, "9" * 5_000, '"\\ud800"', "", "null"):
                about = {"metadata": {"serializer": {"type": "json"}}, "result": text}
                yield json.dumps(about).encode()


def sealed_text(body: bytes) -> bytes:
    return b'{"sha256":"' + keys.digest(body).encode() + b'","body":' + body + b"}"


NAMES = (
    *("x", "0" * 19 + "-computed-ff.json", "999999999999.json", "x-000000000001.json", "~~~"),
    *(f"x0123456789a~{'9' * 140}~~.json", f"{'9' * 19}-{'a' * 16}-ff.json", "a=b=c", "%%%"),
    *(f"{'f' * 64}.json", "\udcff", "a\nb", "x0123456789a~-9999999999999999999~~.json"),
)


# Running.


class HangError(BaseException):
    """A command took too long."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A project that has been used: each kind of object is in its store."""
    root = tmp_path_factory.mktemp("poison")
    (root / "flows").mkdir()
    (root / "flows" / "__init__.py").touch()
    (root / "flows" / "pipeline.py").write_text(FLOW)
    environ = {**os.environ, **SETTINGS, "PFL_PROJECT": str(root)}

    def pfl(*words: str, code: int = 0) -> None:
        done = subprocess.run([*PFL, *words], env=environ, cwd=root, capture_output=True, text=True)
        assert done.returncode == code, done.stderr

    for words in (
        ("invoke", "--id", "abc"),
        ("invoke", "--id", "zed"),
        ("cache", "bust", "--id", "zed", "--step", "b", "--yes"),
    ):
        pfl(*words)
    path = root / "flows" / "pipeline.py"
    path.write_text(FLOW.replace("* 40", "* (10 * 4)"))
    pfl("cache", "accept", "--step", "b", "--yes")
    pfl("invoke", "--id", "abc", "--bust", "this")
    pfl("invoke", "--id", "dead", code=-signal.SIGKILL)
    store = objects_of(Settings(project=str(root), store=str(root / ".pfl" / "store")))
    [dead] = lease.open_calls(store)
    lease.write_end(store, dead, {"cause": "killed", "why": "", "outcome": "CRASHED"})
    return root


@pytest.fixture
def poisoned(base, tmp_path, monkeypatch) -> Iterator[Callable[[], Path]]:
    """Makes a copy of the store, which the next commands use."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PFL_PROJECT", str(base))
    monkeypatch.chdir(base)
    # It exchanges file descriptors of the test's own process.
    monkeypatch.setattr(output, "stdout_kept_for_data", nullcontext)

    def hang(*args: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hang)
    numbers = iter(range(10_000))

    def copy() -> Path:
        place = tmp_path / str(next(numbers))
        shutil.copytree(base / ".pfl" / "store", place)
        os.environ["PFL_STORE"] = str(place)
        return place

    yield copy
    signal.signal(signal.SIGALRM, before)


def objects(store: Path, kind: str) -> list[Path]:
    place = store / kind
    return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())


def run(name: str, command: Callable[[], object]) -> str | None:
    """What is wrong with a command, if anything."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            found = command()
    except (errors.PflError, typer.Exit, typer.TyperException, SystemExit):
        return None
    except HangError:
        return f"{name}: it hangs"
    except BaseException as exc:
        frames = traceback.extract_tb(exc.__traceback__)
        ours = [
            frame for frame in frames if "/handler/" in frame.filename or "/cli/" in frame.filename
        ]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
        return f"{name}: {type(exc).__name__} in {where}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if isinstance(found, dict) and (error := found.get("error")):
        if error["type"] not in KNOWN:
            return f"{name}: {error['type']} in its reply"
    if name == FIRST and isinstance(found, dict) and found["status"] != "completed":
        return f"{name}: {found['status']}, {found['error']}"
    return None


def faults(store: Path, rng: random.Random) -> Iterator[str]:
    """What is wrong with the commands, some of them chosen by chance."""
    settings = Settings.from_env(os.environ)
    for event in EVENTS:
        deadline = time.monotonic() + 8
        call = partial(entry.handle, event, settings, deadline=deadline)
        if found := run(json.dumps(event), call):
            yield found
    record = next((path.name for path in objects(store, "history")), "x")
    short = record.removesuffix(".json").rpartition("-")[2]
    for line in LINES:
        if rng.random() > (SHARE / 10 if line in SLOW else SHARE):
            continue
        words = [short if word == "RECORD" else word for word in line.split()]
        if found := run(f"pfl {line}", partial(COMMAND.main, words, standalone_mode=False)):
            yield found


@pytest.mark.parametrize(("kind", "sort"), list(cases()))
def test_nonsense_in_place_of_an_object_stops_nothing(base, poisoned, kind, sort):
    rng = random.Random(f"{kind} {sort}")
    pristine = base / ".pfl" / "store"
    paths = objects(pristine, "" if kind == "all" else kind)
    assert paths
    path = rng.choice(paths)
    others = [each for each in objects(pristine, "") if each.parts[-4:] != path.parts[-4:]]
    found = set()
    for data in nonsense(sort, path.read_bytes(), rng.choice(others).read_bytes(), rng):
        store = poisoned()
        for each in paths if kind == "all" else [path]:
            if kind != "all" or each.name != "format.json":
                (store / each.relative_to(pristine)).write_bytes(data)
        found |= set(faults(store, rng))
        shutil.rmtree(store)
    assert not found


@pytest.mark.parametrize("kind", KINDS[:-2])
def test_an_object_with_an_odd_name_stops_nothing(base, poisoned, kind):
    rng = random.Random(kind)
    pristine = base / ".pfl" / "store"
    path = rng.choice(objects(pristine, kind))
    found = set()
    for some in (NAMES[:5], NAMES[5:9], NAMES[9:]):
        store = poisoned()
        folder = (store / path.relative_to(pristine)).parent
        for place in (folder, store / kind / "~" / "~", store / kind):
            place.mkdir(parents=True, exist_ok=True)
            for name in some:
                (place / name).write_bytes(b"")
                (place / f"copy-{name}").write_bytes(path.read_bytes())
        found |= set(faults(store, rng))
        shutil.rmtree(store)
    assert not found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_file_in_place_of_an_object_stops_nothing(base, poisoned, kind):
    rng = random.Random(kind)
    path = rng.choice(objects(base / ".pfl" / "store", kind))
    found = set()
    for put in (
        os.mkfifo,
        lambda place: place.symlink_to("/dev/zero"),
        lambda place: place.mkdir(),
    ):
        store = poisoned()
        place = store / path.relative_to(base / ".pfl" / "store")
        place.unlink()
        put(place)
        found |= set(faults(store, rng))
        shutil.rmtree(store)
    assert not found
