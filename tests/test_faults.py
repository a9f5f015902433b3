"""After any fault or death, each step is a hit with the right value, or a miss."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import servers
from conftest import values
from test_bust import OUTSIDE, change

from pfl.handler.core.store import objects as stores

ERROR, SLOW_DOWN = servers.s3_error(500, "InternalError"), servers.s3_error(503, "SlowDown")
ONCE = {
    "error": [ERROR, SLOW_DOWN],
    "reset": ["reset", "lost"],
    "cut": ["cut", "cut"],
    "slow": ["slow", None],
}


@pytest.fixture
def proxied(project, bucket, s3_env, s3_url):
    """The chain, its bucket behind a proxy that passes everything on until told otherwise."""
    project.write(OUTSIDE)
    change(project, 1)
    with servers.Loopback(lambda method, path: None, s3_url) as proxy:
        project.store = stores.open_store(
            f"s3://{bucket}/pfl", environ=s3_env | {"AWS_ENDPOINT_URL": proxy.url}
        )
        project.proxy = proxy
        project.direct = stores.open_store(f"s3://{bucket}/pfl", environ=s3_env)
        yield project


def at(proxy: servers.Loopback, first: int, answer: object, *, last: int | None = None):
    """Answer so from the *first* request on, to the *last* one."""
    start = len(proxy.asked)

    def told(method: str, path: str) -> object:
        number = len(proxy.asked) - start
        return answer if first <= number <= (first if last is None else last) else None

    proxy.answer = told


@pytest.mark.parametrize("faults", ONCE.values(), ids=ONCE)
def test_a_fault_of_any_request_is_survived(proxied, faults):
    """
    Each request of a call that computes and busts fails once.

    In each of some calls every seventh request fails, and passes when it is repeated.
    """
    proxy, whole, every, failed = proxied.proxy, proxied.store, 7, set()
    proxied.call("id", step="a")
    for turn in range(every):
        proxied.store, asked = whole, []

        def told(method: str, path: str, asked=asked, turn=turn) -> object:
            if asked and asked[-1] == (method, path, True):
                asked[-1] = (method, path, False)
                return None
            asked.append((method, path, len(asked) % every == turn))
            failed.update({len(asked)} if asked[-1][2] else ())
            return faults[len(asked) % 2] if asked[-1][2] else None

        proxy.answer = told
        reply = proxied.call("id", step="a", bust="this")
        proxy.answer = lambda method, path: None
        assert reply["status"] == "completed", (turn, asked, reply.get("error"))
        proxied.store = proxied.direct
        assert values(proxied.call("id", step="a")) == {"a": 2}
    # Requests that are made at once, and repeated, are not the same number in each call.
    assert failed >= set(range(1, 21))


@pytest.mark.parametrize("status", [403, 401])
def test_a_store_that_forbids_is_never_a_miss(proxied, status):
    proxied.call()
    ran = proxied.root / "ran.txt"
    proxied.write(
        OUTSIDE.replace("return a + int", f"open({str(ran)!r}, 'a').write('x'); return a + int")
    )
    for first in (1, 2, 5):
        at(proxied.proxy, first, servers.s3_error(status, "AccessDenied"), last=10**9)
        reply = proxied.call()
        if first == 1:
            assert not ran.exists()
        assert (reply["status"], reply["error"]["type"]) == ("failed", "UnavailableError")
        assert "grant this identity access" in reply["error"]["hint"]
        assert "id0" not in json.dumps(reply["error"])


def test_a_hit_whose_body_is_cut_is_read_again(proxied):
    proxied.call()
    at(proxied.proxy, 1, "cut")
    reply = proxied.call()
    assert (reply["status"], reply["warnings"]) == ("completed", [])
    assert values(reply) == {"a": 3, "b": 4, "c": 40}


LARGE = """
@step
def a(id: str) -> str:
    return "x" * (262_144 - 2)

@step
def b(a: str) -> str:
    return a + "x"

@step
def c(b: str) -> int:
    return len(b)

FLOWS = [flow("large", a, b, c)]
"""


def test_a_hit_is_one_request_at_the_server_and_each_value_over_256_kib_one_more(proxied):
    """As JSON, a's value is as long as a plan may hold, b's one byte longer; c's leaves no room."""

    def requests(**event: object) -> list[str]:
        before = len(proxied.proxy.asked)
        reply = proxied.call(**event)
        assert {row["status"] for row in reply["steps"]} == {"hit"}
        return [method for method, _ in proxied.proxy.asked[before:]]

    proxied.call()
    for step in (None, "a", "b", "c"):
        assert requests(step=step) == ["GET"]
    proxied.write(LARGE)
    proxied.call()
    assert [requests(step=step) for step in "abc"] == [["GET"], ["GET"] * 2, ["GET"]]
    assert requests() == ["GET"] * 3


def test_a_long_history_is_not_listed_to_its_end(proxied):
    """It has two pages here; what asks for the newest record reads one of them, and a hit none."""
    proxied.call()
    for number in range(120):
        proxied.direct.put(f"history/abc/b/9{number:018d}-x.json", b"{}")
    for event, listed in (
        ({"step": "b"}, 0),
        ({"step": "c", "skip": ["b"]}, 1),
        ({"step": "b", "bust": "this"}, 1),
    ):
        before = len(proxied.proxy.asked)
        assert proxied.call(**event)["status"] == "completed"
        pages = [
            path
            for _, path in proxied.proxy.asked[before:]
            if "list-type" in path and "history%2Fabc%2Fb" in path
        ]
        assert len(pages) == listed, event
        assert "continuation-token" not in str(pages)


def test_a_store_that_stays_down_is_told_with_its_exit_code(proxied, bucket, s3_env):
    at(proxied.proxy, 1, servers.s3_error(503, "SlowDown"), last=10**9)
    environ = {
        **os.environ,
        "PFL_STORE": f"s3://{bucket}/pfl",
        "AWS_ENDPOINT_URL": proxied.proxy.url,
    }
    run = [
        sys.executable,
        "-c",
        "from pfl.cli.main import main; main()",
        "invoke",
        "--id",
        "abc",
        "--engine",
        "direct",
    ]
    done = subprocess.run(run, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (5, "")
    assert "SlowDown" in done.stderr
    assert "Traceback" not in done.stderr


# Deaths. A clean parent forks one child for each place to die at; a child that does not die reports
# it with its exit code.

_DIE = """
import json, os, signal, sys, time
from pfl.handler import entry
from pfl.handler.core.cache import bust
from pfl.handler.core.declare import catalog
from pfl.handler.core.store import keys, objects as store
from pfl.handler.core.settings import Settings

settings = Settings(**json.loads(sys.argv[1]))
catalog.load(settings)
import pfl.handler.engine.compute


def restore(opened, id):
    undone = [m for m in bust.list_marks(opened, id) if not m.is_from_call]
    bust.restore(opened, undone, dependents={"b", "c"}, known={"a", "b", "c"})


def act(opened, what, id):
    if what == "call":
        reply = entry.handle({"id": id}, settings, results=opened)
    elif what == "bust by call":
        reply = entry.handle({"id": id, "bust": ["b"]}, settings, results=opened)
    elif what == "bust":
        scope = bust.Scope(id, "", ("b",))
        known = {"a", "b", "c"}
        name = bust.new_name()
        bust.bust(opened, scope, name, dependents={"b", "c"}, known=known, retention_s=86400)
    elif what == "restore":
        restore(opened, id)


def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def prepare(what, id):
    opened = store.of(settings)
    entry.handle({"id": id}, settings, results=opened) if what != "call" else None
    if what == "restore":
        act(opened, "bust", id)
    open("outside.txt", "w").write("5") if what != "call" else None
    if what == "restore":
        entry.handle({"id": id}, settings, results=opened)


def die(what, id, place):
    opened, writes = store.of(settings), [0]

    def before_each(verb):
        def write(*args, **kwargs):
            writes[0] += 1
            if writes[0] == place:
                os.kill(os.getpid(), signal.SIGKILL)
            return verb(*args, **kwargs)

        return write

    opened.put, opened.delete = before_each(opened.put), before_each(opened.delete)
    act(opened, what, id)


def look(id):
    opened = store.of(settings)
    replies = []
    for step in ("c", "b"):
        replies.append(entry.handle({"id": id, "step": step}, settings, results=opened))
    replies += [entry.handle({"id": id}, settings, results=opened) for _ in range(2)]
    after = entry.handle({"id": id, "bust": "all"}, settings, results=opened)
    print(json.dumps([replies, after]), flush=True)


bust._PATIENCE_S = 0.05
for what in sys.argv[3:]:
    for place in range(1, 99, int(sys.argv[2])):
        id = f"{what.replace(' ', '-')}-{place}"
        open("outside.txt", "w").write("1")
        assert in_child(lambda: prepare(what, id)) == 0
        print(json.dumps([what, id]), flush=True)
        code = in_child(lambda: die(what, id, place))
        assert code in (0, -signal.SIGKILL), code
        assert in_child(lambda: look(id)) == 0
        if code == 0:
            break
    else:
        raise SystemExit("never done")
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_death_before_any_write_leaves_the_right_value_or_a_miss(
    project, request, kind, tmp_path
):
    """``kill -9`` before each put and delete of a call, a call that busts, a bust and a restore."""
    project.write(OUTSIDE)
    change(project, 1)
    knobs = {"project": str(project.root), "engine": "direct", "store": str(tmp_path / "store")}
    environ = {**os.environ}
    if kind == "s3":
        knobs["store"] = f"s3://{request.getfixturevalue('bucket')}/pfl"
        environ |= request.getfixturevalue("s3_env")
    else:
        (tmp_path / "store").mkdir()
    # The order of the writes is the same on both; on S3, where each costs more, every third is.
    acts, stride = (
        (["call", "bust by call", "bust", "restore"], 1)
        if kind == "local"
        else (["call", "bust", "restore"], 3)
    )
    run = [sys.executable, "-c", _DIE, json.dumps(knobs), str(stride), *acts]
    done = subprocess.run(run, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    tried: dict[str, int] = {}
    for (what, id), (replies, after) in zip(lines[::2], lines[1::2], strict=True):
        tried[what] = tried.get(what, 0) + 1
        a = len(id)
        allowed = [a + 1] if what == "call" else [a + 1, a + 5]
        seen = []
        for reply in replies:
            assert reply["status"] == "completed", reply
            found = values(reply)
            assert found.get("a", a) == a
            b = found["b"] if "b" in found else found["c"] // 10
            assert found.get("c", b * 10) == b * 10
            assert b in allowed
            seen.append(b)
        assert seen[1:] == seen[1:2] * 3, (what, id, seen)
        assert replies[-1]["store"] == {"get": 1}, (what, id)
        assert values(after)["b"] == (a + 1 if what == "call" else a + 5)
    assert tried["call"] * stride > 9 and min(tried.values()) * stride > 3, tried
