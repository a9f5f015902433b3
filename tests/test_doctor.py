"""``pfl doctor``: each thing that is wrong is found, with what to do; nothing else is."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from importlib import metadata

import boto3
import pytest
import servers
from servers import s3_error
from test_engine import ask
from test_setup import forget_blocks, inside  # noqa: F401
from test_worker import Pool

from pfl.handler.core.cache import history, lease
from pfl.handler.engine.prefect import client, session
from pfl.handler.engine.prefect.environment import Api


def rows(ran) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for row in ran.rows:
        found.setdefault(row["check"], []).append((row["status"], row["what"]))
    return found


@pytest.fixture
def here(on_prefect, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    monkeypatch.setenv("PFL_WORK_POOL", "doctor")
    return on_prefect


def test_a_project_that_is_set_up_is_well(here, inside, prefect_server):  # noqa: F811
    forget_blocks(prefect_server.url)
    assert inside("setup", "blocks").code == 0
    Pool(here, prefect_server.url, "doctor").set_up()
    ran = inside("doctor", "--json")
    found = rows(ran)
    assert ran.code == 0
    assert set(found) == {
        "versions",
        "dotenv",
        "flows",
        "prefect",
        "block",
        "store",
        "function",
        "worker",
        "slots",
        "stuck",
        "unstable",
    }
    assert [what for rows in found.values() for status, what in rows if status == "fail"] == []
    assert found["block"] == [("ok", "local-file-system/cache works")]
    assert found["worker"] == [("warn", "0 workers running for doctor")]
    assert "8 steps have the same fingerprint" in found["unstable"][0][1]


def test_what_is_wrong_is_found_and_told_with_a_fix(here, inside, prefect_server, monkeypatch):  # noqa: F811
    here.write("""
        import time
        NOW = time.time()

        @step
        def never(id: str) -> float:
            return NOW

        FLOWS = [flow("ill", never)]
    """)
    (here.root / ".env").write_text("PFL_STOER=x\n")
    (here.root / ".env").chmod(0o644)
    dead = lease.LeaseHolder(here.results, "abc", {"request_id": "dead"}, ttl_s=600)
    dead.claim({"a": {}})
    lease.write_end(here.results, dead.token, {"cause": "killed", "why": ""})
    Pool(here, prefect_server.url, "doctor").set_up()
    ask(prefect_server.url, "/concurrency_limits/", {"tag": "doctored", "concurrency_limit": 1})
    api = Api(prefect_server.url, "", "")
    client.ask(api, "/v2/concurrency_limits/tag:doctored", {"active_slots": 1}, method="PATCH")
    client.ask(api, "/work_pools/doctor", {"is_paused": True}, method="PATCH")
    forget_blocks(prefect_server.url)
    with session.session(here.settings, lambda step, doing: None):
        from prefect.filesystems import LocalFileSystem

        LocalFileSystem(basepath="/elsewhere").save("cache")

    def answer(method: str, path: str):
        return (200, b'"3.0.11"') if path.endswith("/admin/version") else None

    monkeypatch.setattr(
        BaseHTTPRequestHandler,
        "date_time_string",
        lambda self, timestamp=None: "Wed, 21 Oct 2015 07:28:00 GMT",
    )
    with servers.Loopback(answer, prefect_server.url.removesuffix("/api")) as proxy:
        monkeypatch.setenv("PREFECT_API_URL", f"{proxy.url}/api")
        ran = inside("doctor", "--json")
        forget_blocks(prefect_server.url)
        again = rows(inside("doctor", "--fast", "--json"))
    client.ask(api, "/concurrency_limits/tag/doctored", method="DELETE")
    found = rows(ran)
    assert ("warn", "unknown setting PFL_STOER") in found["dotenv"]
    assert ("warn", ".env has mode 644, so others can read it") in found["dotenv"]
    assert found["stuck"] == [("warn", "1 call died without being cleaned up")]
    assert found["unstable"][0][0] == "warn" and "NOW" in found["unstable"][0][1]
    assert [(status, what.split(",")[0]) for status, what in found["prefect"][:2]] == [
        ("ok", f"{proxy.url}/api answers (PREFECT_API_URL)"),
        ("warn", "server 3.0.11"),
    ]
    assert found["prefect"][2][0] == "warn" and "clocks differ" in found["prefect"][2][1]
    assert found["worker"] == [
        ("warn", "work pool doctor is paused"),
        ("warn", "0 workers running for doctor"),
    ]
    # Other tests may have left slots on this server, too.
    assert found["slots"][0][0] == "warn"
    assert re.match(r"[1-9]\d* slots? leaked in", found["slots"][0][1])
    assert found["block"] == [("warn", "local-file-system/cache points to another location")]
    assert again["block"] == [("warn", "local-file-system/cache does not exist")]
    assert all(row["fix"] for row in ran.rows if row["status"] in ("warn", "fail"))
    assert f"chmod 600 {here.root / '.env'}" in [row["fix"] for row in ran.rows]
    assert ran.code == 0


def test_a_bucket_is_tried_out(here, inside, bucket, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PFL_STORE", f"s3://{bucket}/pfl")
    found = rows(inside("doctor", "--fast", "--json"))
    assert ("ok", f"s3://{bucket}/pfl works, and creates objects only once") in found["store"]
    monkeypatch.setenv("PFL_STORE", "s3://no-such-bucket/pfl")
    ran = inside("doctor", "--fast", "--json")
    assert (ran.code, rows(ran)["store"][0][0]) == (5, "fail")


FAILS = {  # Exit code, the check that fails, and its words.
    "away": (5, "prefect", "did not answer"),
    "denied": (5, "prefect", "HTTP 403"),
    "flows": (2, "flows", "pipeline.py"),
    "pool": (2, "worker", "is of type process"),
    "function": (3, "function", "no-such-function does not exist"),
    "role": (5, "function", "reports: the store s3://shut/pfl did not write"),
    "create": (5, "store", "the store overwrites"),
    "version": (2, "versions", "must be >=99"),
    "place": (5, "block", "the store "),
}


@pytest.mark.parametrize("change", FAILS)
def test_what_fails_gives_its_exit_code_and_stops_no_other_check(
    here,
    inside,  # noqa: F811
    monkeypatch,
    change,
    s3_env,
    prefect_server,
):
    code, check, words = FAILS[change]
    forget_blocks(prefect_server.url)
    told = {
        "denied": lambda method, path: (403, b"{}") if path.endswith("/flows/filter") else None,
        # The function as Lambda would answer for it, with a role that may not write.
        "role": lambda method, path: (
            (200, json.dumps(here.handle({"action": "check"})).encode())
            if "/functions/" in path
            else s3_error(403, "AccessDenied")
        ),
    }
    with servers.Loopback(
        told.get(change, lambda method, path: None),
        (
            s3_env["AWS_ENDPOINT_URL"]
            if change == "create"
            else prefect_server.url.removesuffix("/api")
        ),
    ) as proxy:
        if change in ("away", "denied"):
            monkeypatch.setenv(
                "PREFECT_API_URL",
                f"{proxy.url}/api" if change == "denied" else "http://127.0.0.1:9/api",
            )
        elif change == "flows":
            here.write("FLOWS = []")
        elif change == "pool":
            ask(
                prefect_server.url,
                "/work_pools/",
                {"name": "typed-doctor", "type": "process", "base_job_template": {}},
            )
            monkeypatch.setenv("PFL_WORK_POOL", "typed-doctor")
        elif change == "function":
            monkeypatch.setenv("PFL_FUNCTION", "no-such-function")
        elif change == "role":
            here.knobs |= {"store": "s3://shut/pfl", "engine": "direct"}
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            monkeypatch.setenv("PFL_FUNCTION", "pfl")
        elif change == "create":
            boto3.client("s3").create_bucket(Bucket="overwrites")
            proxy.drops.add("if-none-match")
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            monkeypatch.setenv("PFL_STORE", "s3://overwrites/pfl")
        elif change == "version":
            monkeypatch.setattr(metadata, "requires", lambda name: ["obstore>=99"])
        else:
            assert inside("setup", "blocks").code == 0
            (here.root / ".pfl" / "store").rename(here.root / "moved")
            (here.root / ".pfl" / "store").write_text("")
        ran = inside("doctor", *([] if change == "place" else ["--fast"]), "--json")
    found = {row["check"]: row for row in reversed(ran.rows)}
    assert (found[check]["status"], words in found[check]["what"]) == ("fail", True), found[check]
    assert [row for row in ran.rows if row["status"] == "fail" and not row["fix"]] == []
    if change not in ("create", "place"):
        assert found["store"]["status"] == "ok"
    assert (ran.code, len(found) >= 10) == (code, True)


def test_degraded_prefect_computes_and_says_so(project, monkeypatch):
    project.knobs |= {"engine": "prefect", "prefect_api_url": "http://127.0.0.1:9/api"}
    down = project.call("down")
    assert (down["status"], down["error"]["type"]) == ("failed", "UnavailableError")
    project.knobs["on_prefect_down"] = "direct"
    left = {
        entry.key for entry in project.results.list("calls")
    }  # Of the call that failed, which may have a run in Prefect.
    reply = project.call("down")
    assert (reply["status"], reply["engine"]) == ("completed", "direct")
    assert [warning for warning in reply["warnings"] if "computed without Prefect" in warning]
    (record,) = [
        body for _, body in history.list_computed(project.results, "down", "a", pytest.fail)
    ]
    assert (record["engine"], "127.0.0.1:9" in record["degraded"]) == ("direct", True)
    assert project.call("down")["store"] == {"get": 1}
    assert {entry.key for entry in project.results.list("calls")} == left
