"""What `pfl bench` says, that it leaves nothing behind, and counts that must not grow unseen."""

from __future__ import annotations

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
from conftest import ROOT

sys.path.append(str(ROOT / "tests" / "benchmarks"))

import publish

from cli import main as command
from cli.benchmark import chart, report, rig, steps, workloads
from cli.benchmark.relay import Relay

PUBLISHED = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))


def run_bench(*arguments: object) -> int:
    """The exit code of ``pfl bench`` in this process."""
    with pytest.raises(SystemExit) as ended:
        command.main(["bench", *map(str, arguments)])
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
    few = ("--rounds", 1, "--calls", 2, "--flow", "chain-3", "--store", "directory", "--latency", 0, "--callers", 3, "--ids", 5, "--ids", 12)
    code = run_bench("--engine", "pfl-direct", *few, "--out", out, "--json")
    said = capsys.readouterr()
    assert code == 0, said.err
    run = json.loads(said.out)
    assert run == json.loads(out.read_text()) and run["version"] == 1 and run["machine"]["cores"] == os.cpu_count()
    rows = {(row["engine"], row["case"], row["start"]): row for row in run["steps"]}
    assert set(rows) == {("functions", "miss", start) for start in ("cold", "warm")} | {("pfl-direct", case, start) for case in steps.CASES for start in ("cold", "warm")}
    assert {key[1]: row["answer"] for key, row in rows.items() if key[0] == "pfl-direct"} == {
        "miss": "computed", "hit": "hit", "cosmetic": "hit", "helper": "computed again",
    }  # fmt: skip
    hit = rows["pfl-direct", "hit", "warm"]
    assert (hit["calls"], hit["reads"], hit["writes"], hit["api_requests"], hit["computed_steps"]) == (2, 1, 0, 0, 0)
    assert rows["pfl-direct", "miss", "warm"]["computed_steps"] == 3
    assert {name for name, value in hit.items() if isinstance(value, int | float)} >= {"median_ms", "p95_ms", "per_step_ms", "cpu_ms", "modules", "latency_ms", "steps"}
    assert [(row["callers"], row["keys"], row["computations"]) for row in run["concurrency"]] == [(3, 1, 1), (3, 3, 3)]
    assert [(row["unanswered"], row["why"]) for row in run["concurrency"]] == [(0, None)] * 2
    assert [row["ids"] for row in run["scale"]] == [5, 12]
    for row in run["scale"]:
        assert row["hits_per_s"] > 0 and row["operations"]["history ls"]["requests"] > row["operations"]["runs reap"]["requests"] == 1
    assert "1 of 8: chain-3, directory, 0 ms: miss" in said.err.splitlines() and "8 of 8: a store of 12 IDs" in said.err.splitlines()
    assert out.with_suffix(".md").read_text() == report.markdown(run, chart_file="run.svg")
    assert out.with_suffix(".svg").read_text() == chart.svg(run)
    assert sorted(project.root.rglob("*")) == before and list(temporary.iterdir()) == []


def test_plain_prefect_answers_with_an_old_value_after_a_helper_changed_and_pfl_computes_again(prefect_server):
    with rig.Rig(lambda text: None, api=prefect_server.url) as made:
        cell = steps.Cell("meaning", "directory", 0, rounds=1, calls=0)
        rows = steps.measure(made, [cell], lambda text: None, engines=("pfl-direct", "prefect"), cases=("miss", "helper"))
    told = {(row["engine"], row["case"]): row for row in rows}
    assert told["pfl-direct", "miss"]["answer"] == told["prefect", "miss"]["answer"] == "computed"
    assert told["pfl-direct", "helper"]["answer"] == "computed again"
    assert told["prefect", "helper"]["answer"] == "stale"
    assert told["pfl-direct", "helper"]["api_requests"] == 0 < told["prefect", "helper"]["api_requests"]
    assert (told["prefect", "miss"]["writes"], told["prefect", "helper"]["writes"], told["prefect", "helper"]["reads"]) == (3, 0, 6)


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
        (["--only", "steps", "--callers", "3"], 2, "--only concurrency"),
        (["--only", "steps", "--ids", "3"], 2, "--only scale"),
    ],
)
def test_wrong_input_is_told_before_anything_is_measured(project, arguments, code, hint, capsys):
    assert run_bench(*arguments) == code
    said = capsys.readouterr()
    assert hint in said.err and said.out == ""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize(("arguments", "moment"), [(["--engine", "prefect"], "starting an embedded"), (["--engine", "pfl-direct", "--store", "s3"], "1 of ")])
def test_ctrl_c_ends_with_130_and_leaves_no_server_and_no_file(temporary, arguments, moment):
    mark = f"BY_{os.urandom(8).hex()}"
    environ = os.environ | {mark: "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "cli.main", "bench", "--only", "steps", "--rounds", "500", *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=temporary.parent) as process:
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
    with servers.Loopback(lambda method, path: (503 if path == "/busy" else 200, path.encode())) as behind, Relay(int(behind.url.rpartition(":")[2]), rtt_ms=2) as relay:
        for number in range(3):
            with urllib.request.urlopen(f"{relay.url}/{number}") as answer:
                assert answer.read() == f"/{number}".encode()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{relay.url}/busy")
    assert +relay.asked == {f"GET /{number}": 1 for number in range(3)}
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(relay.url.rpartition(":")[2]))) as late:
        late.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert late.recv(1) == b"", "somebody answered"
        raise ConnectionError


def test_both_copies_of_a_step_take_an_edit_and_the_way_back(tmp_path):
    workloads.write(tmp_path)
    for workload in workloads.ALL.values():
        before = {path: path.read_text() for path in tmp_path.rglob("*.py")}
        for case in ("cosmetic", "helper"):
            workloads.edit(tmp_path, workload, case)
            changed = {path.relative_to(tmp_path).parts[0] for path, text in before.items() if path.read_text() != text}
            assert changed == {"flows", "plain"}
            for path in before:
                compile(path.read_text(), str(path), "exec")
        workloads.write(tmp_path)
        assert {path: path.read_text() for path in tmp_path.rglob("*.py")} == before
    assert "handler" not in "".join(path.read_text() for path in (tmp_path / "plain").rglob("*.py"))


def test_a_call_costs_what_it_is_expected_to(project, prefect_server, bucket, s3_env, tmp_path):
    """``python tests/benchmarks/expect.py`` writes the expectation anew, where a change is meant."""
    import expect

    environ = os.environ | {"PFL_ENGINE": "direct", "PREFECT_HOME": str(tmp_path / "home")}
    found = expect.measure(project.root, environ, prefect_server.url, s3_env | {"PFL_STORE": f"s3://{bucket}/expect"})
    assert found == json.loads(expect.EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_tables_and_chart_of_a_published_run_are_those_of_its_numbers(path):
    run = json.loads(path.read_text(encoding="utf-8"))
    assert run["date"] == path.stem and run["steps"] and run["concurrency"] and run["scale"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == report.markdown(run, chart_file=f"{path.stem}.svg", more=publish.beside(run))
    assert path.with_suffix(".svg").read_text(encoding="utf-8") == chart.svg(run)


def test_the_readme_tells_what_the_newest_published_run_says():
    newest = PUBLISHED[-1]
    _, told, _ = publish.parted(publish.README.read_text(encoding="utf-8"))
    assert told == publish.section(json.loads(newest.read_text(encoding="utf-8")), f"docs/benchmarks/{newest.stem}")
