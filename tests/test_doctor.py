"""``pfl doctor``: each thing that is wrong is found, with what to do; nothing else is."""

from __future__ import annotations

import pytest
from test_setup import forget_blocks, inside  # noqa: F401
from test_worker import Pool

from handler.core import records


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
    assert set(found) == {"versions", "dotenv", "flows", "prefect", "block", "store", "bucket", "function", "worker", "slots", "stuck", "unstable"}
    assert [what for rows in found.values() for status, what in rows if status == "fail"] == []
    assert found["block"] == [("ok", "local-file-system/cache works")]
    assert found["worker"] == [("warn", "0 workers of doctor are alive")]
    assert "8 steps have the same fingerprint" in found["unstable"][0][1]


def test_what_is_wrong_is_found_and_told_with_a_fix(here, inside):  # noqa: F811
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
    body = {"version": 1, "state": "ended", "call": "dead", "id": "abc", "ttl_s": 0, "expires_at": records.now_iso()}
    here.results.put("calls/dead-000000000001.json", records.seal(body))
    ran = inside("doctor", "--json")
    found = rows(ran)
    assert ("warn", "no setting is called PFL_STOER") in found["dotenv"]
    assert ("warn", ".env has mode 644, others can read it") in found["dotenv"]
    assert found["stuck"] == [("warn", "1 calls died and are not buried")]
    assert found["unstable"][0][0] == "warn" and "NOW" in found["unstable"][0][1]
    assert all(row["fix"] for row in ran.rows if row["status"] in ("warn", "fail"))
    assert f"chmod 600 {here.root / '.env'}" in [row["fix"] for row in ran.rows]
    assert ran.code == 0


def test_a_bucket_is_looked_at_from_outside(here, inside, bucket, s3_client, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PFL_STORE", f"s3://{bucket}/pfl")
    before = rows(inside("doctor", "--fast", "--json"))
    assert ("warn", f"{bucket} is not versioned") in before["bucket"]
    assert ("warn", f"{bucket} is not private") in before["bucket"]
    assert ("ok", f"s3://{bucket}/pfl is written, read, and created once only") in before["store"]
    s3_client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    shut = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3_client.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=shut)
    after = rows(inside("doctor", "--fast", "--json"))
    assert {("ok", f"{bucket} is versioned"), ("ok", f"{bucket} is private")} <= set(after["bucket"])
    monkeypatch.setenv("PFL_STORE", "s3://no-such-bucket/pfl")
    ran = inside("doctor", "--fast", "--json")
    assert (ran.code, rows(ran)["bucket"][0][0], rows(ran)["store"][0][0]) == (5, "fail", "fail")


@pytest.mark.parametrize("change", ["away", "flows", "function"])
def test_what_fails_gives_its_exit_code_and_stops_no_other_check(here, inside, monkeypatch, change, s3_env):  # noqa: F811
    code, check = {"away": (5, "prefect"), "flows": (2, "flows"), "function": (3, "function")}[change]
    if change == "away":
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    elif change == "flows":
        here.write("FLOWS = []")
    else:
        monkeypatch.setenv("PFL_FUNCTION", "no-such-function")
    ran = inside("doctor", "--fast", "--json")
    assert rows(ran)[check][0][0] == "fail"
    assert rows(ran)["store"][0][0] == "ok"
    assert ran.code == code


def test_degraded_prefect_computes_and_says_so(project, monkeypatch):
    project.knobs |= {"engine": "prefect", "prefect_api_url": "http://127.0.0.1:9/api"}
    down = project.call("down")
    assert (down["status"], down["error"]["type"]) == ("failed", "UnavailableError")
    project.knobs["on_prefect_down"] = "direct"
    left = {entry.key for entry in project.results.list("calls")}  # Of the call that failed, which may have a run in Prefect.
    reply = project.call("down")
    assert (reply["status"], reply["engine"]) == ("completed", "direct")
    assert [warning for warning in reply["warnings"] if "computed without Prefect" in warning]
    (record,) = [body for _, body in records.newest(project.results, "down", "a", [])]
    assert (record["engine"], "127.0.0.1:9" in record["degraded"]) == ("direct", True)
    assert project.call("down")["store"] == {"get": 1}
    assert {entry.key for entry in project.results.list("calls")} == left
