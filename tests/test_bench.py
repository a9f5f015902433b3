"""The benchmark reports all of a run and leaves nothing behind; counts do not change unnoticed."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import servers
from benchmarks import bench, chart, expect, latency, publish, report, rig, scale, steps, workloads
from benchmarks.relay import Relay
from conftest import ROOT

PUBLISHED = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))


def run_bench(*arguments: object) -> int:
    """The exit code of the benchmark in this process."""
    with pytest.raises(SystemExit) as ended:
        bench.main([str(each) for each in arguments])
    return ended.value.code


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The directory for temporary files, empty."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield place
    monkeypatch.undo()


def test_a_small_run_tells_all_of_itself_and_leaves_nothing(project, temporary, tmp_path, capsys):
    out = tmp_path / "run.json"
    before = sorted(project.root.rglob("*"))
    few = (
        "--rounds",
        1,
        "--calls",
        2,
        "--flow",
        "chain-3",
        "--store",
        "directory",
        "--latency",
        0,
        "--callers",
        3,
        "--ids",
        5,
        "--ids",
        12,
    )
    code = run_bench(
        "--engine",
        "pfl-direct",
        "--engine",
        "pfl-direct",
        *few,
        "--flow",
        "chain-3",
        "--out",
        out,
        "--json",
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    run = json.loads(said.out)
    assert (
        run == json.loads(out.read_text())
        and run["version"] == 1
        and run["machine"]["cores"] == os.cpu_count()
    )
    rows = {(row["engine"], row["case"], row["start"]): row for row in run["steps"]}
    assert set(rows) == {("functions", "miss", start) for start in ("cold", "warm")} | {
        ("pfl-direct", case, start) for case in steps.CASES for start in ("cold", "warm")
    }
    assert {key[1]: row["answer"] for key, row in rows.items() if key[0] == "pfl-direct"} == {
        "miss": "computed",
        "hit": "hit",
        "cosmetic": "hit",
        "helper": "computed again",
    }
    hit = rows["pfl-direct", "hit", "warm"]
    assert (
        hit["calls"],
        hit["reads"],
        hit["writes"],
        hit["api_requests"],
        hit["computed_steps"],
    ) == (2, 1, 0, 0, 0)
    assert rows["pfl-direct", "miss", "warm"]["computed_steps"] == 3
    assert {name for name, value in hit.items() if isinstance(value, int | float)} >= {
        "median_ms",
        "p95_ms",
        "per_step_ms",
        "cpu_ms",
        "modules",
        "latency_ms",
        "steps",
    }
    assert [(row["callers"], row["keys"], row["computations"]) for row in run["concurrency"]] == [
        (3, 1, 1),
        (3, 3, 3),
    ]
    assert [(row["unanswered"], row["why"]) for row in run["concurrency"]] == [(0, None)] * 2
    assert [row["ids"] for row in run["scale"]] == [5, 12]
    for row in run["scale"]:
        assert (
            row["hits_per_s"] > 0
            and row["operations"]["history ls"]["requests"]
            > row["operations"]["runs reap"]["requests"]
            == 2
        )
    assert (
        "1 of 8: chain-3, directory, 0 ms: miss" in said.err.splitlines()
        and "8 of 8: a store of 12 IDs" in said.err.splitlines()
    )
    absent = (
        "meaning, audit, chain-1, chain-10, chain-50, S3, 80 ms to Prefect, 1 callers, 8 callers, "
        "64 callers, 10 IDs, 10,000 IDs, 1,000,000 IDs"
    )
    assert {"what": f"{absent}, pfl, `prefect`, plain Prefect", "why": "not asked for"} in run[
        "left_out"
    ]
    assert out.with_suffix(".md").read_text() == report.markdown(run, chart_file="run.svg")
    assert out.with_suffix(".svg").read_text() == chart.svg(run)
    assert sorted(project.root.rglob("*")) == before and list(temporary.iterdir()) == []


def test_plain_prefect_answers_with_an_old_value_after_a_helper_changed_and_pfl_computes_again(
    prefect_server,
):
    with rig.Rig(lambda text: None, api=prefect_server.url) as made:
        cell = steps.Cell("meaning", "directory", 0, rounds=1, calls=0)
        rows = list(
            steps.measure(
                made,
                [cell],
                lambda text: None,
                [],
                engines=("pfl-direct", "prefect"),
                cases=("miss", "helper"),
            )
        )
    told = {(row["engine"], row["case"]): row for row in rows}
    assert told["pfl-direct", "miss"]["answer"] == told["prefect", "miss"]["answer"] == "computed"
    assert told["pfl-direct", "helper"]["answer"] == "computed again"
    assert told["prefect", "helper"]["answer"] == "stale"
    assert (
        told["pfl-direct", "helper"]["api_requests"]
        == 0
        < told["prefect", "helper"]["api_requests"]
    )
    assert (
        told["prefect", "miss"]["writes"],
        told["prefect", "helper"]["writes"],
        told["prefect", "helper"]["reads"],
    ) == (3, 0, 6)


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["--only", "nope"], 2, "'steps', 'concurrency', 'scale'"),
        (["--flow", "nope"], 2, "chain-50"),
        (["--engine", "nope"], 2, "pfl-direct"),
        (["--store", "gcs"], 2, "'directory', 's3'"),
        (["--ids", "0"], 2, "--help"),
        (["--out", "run.txt"], 2, "run.json"),
        (["--out", "absent/run.json"], 3, "mkdir -p absent"),
        (["--s3", "bucket"], 2, "s3://my-bucket/bench"),
        (["--s3", "s3://bucket", "--store", "directory"], 2, "--store s3"),
        (["--only", "steps", "--callers", "3"], 2, "--only concurrency"),
        (["--only", "steps", "--ids", "3"], 2, "--only scale"),
        (["--only", "scale", "--flow", "audit"], 2, "--only steps"),
        (["--only", "concurrency", "--rounds", "3"], 2, "--only steps"),
    ],
)
def test_wrong_input_is_told_before_anything_is_measured(project, arguments, code, hint, capsys):
    assert run_bench(*arguments) == code
    said = capsys.readouterr()
    assert hint in said.err and said.out == ""


def test_a_bucket_of_the_users_own_is_as_it_was(project, s3_client, bucket, capsys):
    s3_client.put_object(Bucket=bucket, Key="bench/kept", Body=b"mine")
    few = ("--rounds", 1, "--calls", 1, "--flow", "chain-1", "--store", "s3", "--latency", 0)
    code = run_bench(
        "--only", "steps", "--engine", "pfl-direct", "--s3", f"s3://{bucket}/bench", *few, "--json"
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    run = json.loads(said.out)
    assert [each["what"] for each in run["left_out"] if each["why"] == "--only"] == [
        "the section concurrency",
        "the section scale",
    ]
    assert {"Lambda itself", "requests of plain Prefect to S3"} < {
        each["what"] for each in run["left_out"]
    } and "moto on loopback" not in said.out
    hit = next(row for row in run["steps"] if (row["case"], row["start"]) == ("hit", "warm"))
    assert (hit["store"], hit["reads"], hit["writes"]) == ("s3", 1, 0)
    assert [entry["Key"] for entry in s3_client.list_objects_v2(Bucket=bucket)["Contents"]] == [
        "bench/kept"
    ]


def test_a_bucket_that_is_not_there_is_told_before_anything_is_measured(
    project, s3_env, temporary, monkeypatch, capsys
):
    for name, value in s3_env.items():
        monkeypatch.setenv(name, value)
    assert run_bench("--engine", "pfl-direct", "--s3", "s3://absent-bucket/bench") == 5
    said = capsys.readouterr()
    assert (
        "bucket" in said.err
        and "1 of" not in said.err
        and said.out == ""
        and list(temporary.iterdir()) == []
    )


def test_a_flow_that_fails_is_left_out_with_its_reason_and_the_others_go_on(monkeypatch):
    write = workloads.write

    def broken(project: Path) -> None:
        write(project)
        path = project / "flows" / "chain_1.py"
        path.write_text(path.read_text().replace("return add", "return 1 / 0 + add"))

    monkeypatch.setattr(workloads, "write", broken)
    with rig.Rig(lambda text: None) as made:
        left_out: list[dict] = []
        cells = [
            steps.Cell(f"chain-{length}", "directory", 0, rounds=1, calls=0) for length in (1, 3)
        ]
        rows = list(
            steps.measure(
                made, cells, lambda text: None, left_out, engines=("pfl-direct",), cases=("miss",)
            )
        )
    assert {row["workload"] for row in rows} == {"chain-3"}
    assert [each["what"] for each in left_out] == [
        "chain-1, directory, 0 ms to Prefect"
    ] and "ZeroDivisionError" in left_out[0]["why"]


def test_what_was_measured_before_a_failure_is_kept(
    project, temporary, tmp_path, monkeypatch, capsys
):
    def full(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(scale, "_write", full)
    out = tmp_path / "run.json"
    assert (
        run_bench(
            "--only",
            "concurrency",
            "--only",
            "scale",
            "--engine",
            "pfl-direct",
            "--callers",
            1,
            "--ids",
            3,
            "--out",
            out,
        )
        != 0
    )
    said, run = capsys.readouterr(), json.loads(out.read_text())
    assert f"what was measured until then is in {out}" in said.err and "No space left" in said.err
    assert [row["computations"] for row in run["concurrency"]] == [1] and run["scale"] == []
    assert "No space left" in next(
        each["why"] for each in run["left_out"] if each["what"] == "the rest of the run"
    )
    assert "No space left" in out.with_suffix(".md").read_text() and list(temporary.iterdir()) == []


def test_one_call_that_computed_is_enough_to_be_no_hit_and_no_outlier_is_dropped():
    def call(ms: float, computed: int) -> dict:
        return {
            "ms": ms,
            "computed": computed,
            "is_right": True,
            "cpu_ms": 1.0,
            "reads": 1,
            "writes": 0,
            "api_requests": 28,
            "api_refused": 2,
            "modules": 9,
        }

    cell = steps.Cell("meaning", "directory", 0, rounds=1, calls=20)
    calls = [call(float(ms), 0) for ms in range(20)]
    row = steps._row(cell, workloads.MEANING, "prefect", "hit", "warm", calls)
    assert (row["answer"], row["median_ms"], row["p95_ms"], row["api_refused"]) == (
        "hit",
        9.5,
        18.0,
        40,
    )
    row = steps._row(
        cell, workloads.MEANING, "prefect", "hit", "warm", [*calls[:2], call(0.0004, 1)]
    )
    assert (row["answer"], row["median_ms"], row["p95_ms"], row["per_step_ms"]) == (
        "computed again",
        0.0004,
        1.0,
        0.000133,
    )


def test_a_tool_that_failed_gave_no_old_answer():
    tools = [
        {
            "tool": tool,
            "version": "1",
            "store": "here",
            "cold_ms": 2.0,
            "warm_ms": 0.0123,
            "modules": 3,
        }
        for tool in ("redun", "joblib, local cache")
    ]
    stale = [
        {"tool": "redun", "changes": 10, "noticed": 3, "failed": 2},
        {"tool": "joblib", "changes": 10, "noticed": 3, "failed": 0},
    ]
    [told] = publish.other_tools({"rivals": tools, "stale": stale})
    assert "| 0.0123 | 3 | 5 of 10, 2 failed |" in told and "| 0.0123 | 3 | 7 of 10 |" in told


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 99}'])
def test_a_file_that_is_not_a_run_is_refused(tmp_path, text, capsys):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        publish.main(["--run", str(path)])
    assert "is not a run of the benchmark" in capsys.readouterr().err and path.read_text() == text


def test_publishing_a_run_that_was_measured_writes_its_tables_and_the_results_page(
    tmp_path, monkeypatch
):
    page, path = tmp_path / "docs" / "benchmarks.md", tmp_path / "docs" / "benchmarks" / "run.json"
    path.parent.mkdir(parents=True)
    page.write_text(f"before\n{publish.BEGIN}\nXYZZY\n{publish.END}\nafter\n")
    path.write_bytes(PUBLISHED[-1].read_bytes())
    monkeypatch.setattr(publish, "PAGE", page)
    publish.main(["--run", str(path)])
    run = json.loads(path.read_text())
    assert (
        page.read_text()
        == f"before\n{publish.BEGIN}{publish.section(run, 'benchmarks/run')}{publish.END}\nafter\n"
    )
    assert (
        run == json.loads(PUBLISHED[-1].read_text())
        and path.with_suffix(".md").exists()
        and path.with_suffix(".svg").exists()
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (["--engine", "prefect"], "starting an embedded"),
        (["--engine", "pfl-direct", "--store", "s3"], "1 of "),
    ],
)
def test_ctrl_c_ends_with_130_and_leaves_no_server_and_no_file(temporary, arguments, moment):
    mark = f"BY_{os.urandom(8).hex()}"
    environ = os.environ | {
        mark: "1",
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    words = [
        sys.executable,
        bench.__file__,
        "--only",
        "steps",
        "--rounds",
        "500",
        *arguments,
    ]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=temporary.parent,
    ) as process:
        assert any(moment in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "interrupted" in rest and "Traceback" not in rest
    assert list(temporary.iterdir()) == []
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and _has(pid, mark)] == []


def _has(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return False


def test_a_relay_passes_on_what_it_counts_and_counts_no_refusal():
    with (
        servers.Loopback(
            lambda method, path: (503 if path == "/busy" else 200, path.encode())
        ) as behind,
        Relay(int(behind.url.rpartition(":")[2]), rtt_ms=2) as relay,
    ):
        for number in range(3):
            with urllib.request.urlopen(f"{relay.url}/{number}") as answer:
                assert answer.read() == f"/{number}".encode()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{relay.url}/busy")
    assert +relay.asked == {f"GET /{number}": 1 for number in range(3)} and relay.refused == 1
    with (
        pytest.raises(OSError),
        socket.create_connection(("127.0.0.1", int(relay.url.rpartition(":")[2]))) as late,
    ):
        late.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert late.recv(1) == b"", "somebody answered"
        raise ConnectionError


def test_the_latency_benchmark_counts_the_requests_of_each_row(prefect_server):
    with rig.Rig(lambda text: None, api=prefect_server.url) as made:
        only = ("pfl-direct", "pfl-prefect", "pfl-directory", "redun")
        run = latency.measure(made, sys.executable, calls=1, only=only, store_ms=0.2, api_ms=0.2)
    calls = {name: call for name, [call] in run["calls"].items()}
    rows = {row["tool"]: row for row in run["rows"]}
    direct, prefect, directory = "pfl, `direct`", "pfl, `prefect`", "pfl, `direct`, directory"
    assert list(rows) == list(calls) == [direct, prefect, directory]
    for name, row in rows.items():
        call = calls[name]
        assert (row["calls"], row["store_requests"]) == (1, len(call.store))
        assert row["api_requests"] == len(call.api)
        assert 0 < call.overhead_ms < call.ms
        assert all(each.began_s < each.ended_s for each in call.store + call.api)
    for name in (direct, prefect):
        assert rows[name]["store_requests"] == calls[name].counted > 0
    asked = {name: [each.request for each in call.api] for name, call in calls.items()}
    assert asked[direct] == asked[directory] == calls[directory].store == []
    assert asked[prefect].count("POST /api/flow_runs/") == 1
    assert len(latency.timeline(calls[direct])) == calls[direct].counted
    missing = "redun is not installed: pip install -e '.[rivals]'"
    assert run["left_out"] == [{"what": "redun", "why": missing}]
    assert latency.tables(run)[1:] == [f"- redun: {missing}"]


def test_the_ratios_of_the_latency_benchmark_divide_pfl_by_each_other_tool():
    def row(tool: str, median_ms: float) -> dict:
        counts = {"store_requests": 6, "api_requests": 0}
        return {"tool": tool, "version": "", "store": "S3", "min_ms": 1, **counts} | {
            "median_ms": median_ms
        }

    rows = [row("pfl, `direct`", 150.0), row("slow", 300.0), row("fast", 100.0)]
    [_, ratios] = latency.tables({"rows": rows, "left_out": []})
    assert ratios.splitlines()[2:] == ["| pfl, `direct` / … | 0.500 × | 1.50 × |"]


def test_both_copies_of_a_step_take_an_edit_and_the_way_back(tmp_path):
    workloads.write(tmp_path)
    for workload in workloads.ALL.values():
        before = {path: path.read_text() for path in tmp_path.rglob("*.py")}
        for case in ("cosmetic", "helper"):
            workloads.edit(tmp_path, workload, case)
            changed = {
                path.relative_to(tmp_path).parts[0]
                for path, text in before.items()
                if path.read_text() != text
            }
            assert changed == {"flows", "plain"}
            for path in before:
                compile(path.read_text(), str(path), "exec")
        workloads.write(tmp_path)
        assert {path: path.read_text() for path in tmp_path.rglob("*.py")} == before
    assert "handler" not in "".join(path.read_text() for path in (tmp_path / "plain").rglob("*.py"))


def test_a_call_costs_what_it_is_expected_to(project, prefect_server, bucket, s3_env, tmp_path):
    """After an intended change, ``python tests/benchmarks/expect.py`` rewrites the expectation."""
    environ = os.environ | {"PFL_ENGINE": "direct", "PREFECT_HOME": str(tmp_path / "home")}
    found = expect.measure(
        project.root, environ, prefect_server.url, s3_env | {"PFL_STORE": f"s3://{bucket}/expect"}
    )
    assert found == json.loads(expect.EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_tables_and_chart_of_a_published_run_are_those_of_its_numbers(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["date"] == path.stem and run["steps"] and run["concurrency"] and run["scale"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == report.markdown(
        run, chart_file=f"{path.stem}.svg", extra=publish.other_tools(run)
    )
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == chart.svg(run)


def test_the_results_page_is_that_of_the_newest_published_run():
    newest = PUBLISHED[-1]
    _, results, _ = publish.parted(publish.PAGE.read_text(encoding="utf-8"))
    assert results == publish.section(
        json.loads(newest.read_text(encoding="utf-8")), f"benchmarks/{newest.stem}"
    )
