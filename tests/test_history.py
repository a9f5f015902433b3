"""History: a record of each event, in order, found at constant cost; diff, bisect, export."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import pytest
from conftest import statuses, values
from test_bust import OUTSIDE, change

from pfl.cli import compare, output
from pfl.cli import main as cli
from pfl.handler.core.cache import bust, history
from pfl.handler.core.store import keys, records

COUNT = """
import pfl

@step
def turn(id: str, previous, by: int = 1):
    if by == 0:
        raise ValueError("no turn")
    seen = [each["total"] for each in pfl.history(id, "turn", limit=2)]
    return {"total": (previous or {"total": 0})["total"] + by, "seen": seen}

@step
def twice(turn) -> int:
    return turn["total"] * 2

FLOWS = [flow("count", turn, twice)]
"""


@pytest.fixture
def counting(project, monkeypatch):
    """A flow whose every turn rests on the one before, and a handle on its store."""
    project.write(COUNT)
    monkeypatch.setenv("PFL_ENGINE", "direct")
    return project


def pfl(*words: str) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def rows(*words: str) -> list[dict]:
    code, out, err = pfl("history", "ls", "--json", *words)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def put(
    store,
    number: int,
    value: object,
    *,
    id: str = "abc",
    step: str = "b",
    status: str = "computed",
    **more: object,
) -> history.Name:
    """A record as publish writes one, at second *number*."""
    folder, sha256 = keys.encode_id(id), keys.value_digest(value)
    name = history.new_name(
        folder,
        step,
        sha256[:16] if status == "computed" else status,
        time_ns=(1_700_000_000 + number) * 10**9,
    )
    body = {
        "flow": "f",
        "id": id,
        "step": step,
        "status": status,
        "fingerprint": "0" * 64,
        "key": sha256,
        "sha256": sha256,
        "size_bytes": 1,
    }
    body |= {
        "computed_at": None,
        "expires_at": None,
        "engine": "direct",
        "flow_run_id": None,
        "task_run_id": None,
        "value": value,
        "request_id": f"r{number}",
        **more,
    }
    history.append(store, name, body)
    history.point(store, [name])
    return name


# What is written.


def test_a_record_holds_what_a_run_is_explained_with(counting):
    counting.call()
    reply = counting.call(bust="all")
    newest = {row["step"]: row for row in rows()[:2]}
    first = rows()[3]
    turn, twice = newest["turn"], newest["twice"]
    assert (turn["value"], twice["value"]) == ({"total": 2, "seen": [1]}, 4)
    assert (turn["previous"], turn["params"]) == (first["record"], {"by": 1})
    assert twice["inputs"]["turn"]["value"] == turn["value"]
    assert turn["request_id"] == reply["request_id"] and turn["code"] == reply["code"]
    assert turn["cold_start"] is False
    assert turn["key"] == reply["steps"][0]["key"] and turn["why"] == "busted by this call"
    code, out, _ = pfl("history", "show", turn["short"], "--json")
    assert code == 0 and "turn" in {part["name"] for part in json.loads(out)["parts"]}
    assert values(reply)["turn"]["seen"] == [1]


def test_failed_crashed_busted_restored_and_accepted_are_in_it_and_are_no_value(counting):
    counting.call()
    assert counting.call(params={"by": 0})["status"] == "failed"
    [failed] = rows("--status", "failed")
    error = {"type": "ValueError", "what": "no turn", "why": ""}
    assert failed["error"].items() >= error.items()
    assert failed["step"] == "turn"
    marks = bust.bust(
        counting.results,
        bust.Scope("abc", "", ("turn",)),
        bust.new_name(),
        dependents={"turn", "twice"},
        known={"turn", "twice"},
        retention_s=9,
    )
    assert marks == 2
    undone = bust.list_marks(counting.results, "abc")
    bust.restore(counting.results, undone, dependents={"turn", "twice"}, known={"turn", "twice"})
    assert [row["status"] for row in rows("--limit", "3")] == ["restored", "busted", "failed"]
    counting.write(COUNT.replace("* 2", "* 2 + 0"))
    assert pfl("cache", "accept", "--step", "twice", "--yes")[0] == 0
    assert rows("--id", "abc", "--limit", "1")[0]["status"] == "accepted"
    assert values(counting.call(params={"by": 5}))["turn"]["total"] == 6


def test_a_busted_call_that_is_sent_again_takes_no_second_turn(counting):
    """Lambda sends an asynchronous event again under its request ID where the process died."""
    from pfl.handler import entry

    counting.call()
    for _ in range(2):
        reply = entry.handle(
            {"id": "abc", "bust": "all"},
            counting.settings,
            request_id="same",
            results=counting.store,
        )
        assert values(reply)["turn"]["total"] == 2
    assert statuses(reply) == {"turn": "hit", "twice": "hit"}
    assert values(counting.call(bust="all"))["turn"]["total"] == 3


def test_a_clock_that_went_backwards_does_not_change_the_order(counting, monkeypatch):
    counting.call()
    for hour in range(1, 4):
        earlier = time.time_ns() - hour * 3600 * 10**9
        monkeypatch.setattr(history.time, "time_ns", partial(int, earlier))
        assert values(counting.call(bust="all"))["turn"]["total"] == hour + 1
    assert [row["value"]["total"] for row in rows("--step", "turn")] == [4, 3, 2, 1]


def test_a_large_value_is_kept_by_reference_and_found_again(counting):
    counting.knobs["inline_bytes"] = 10
    counting.call()
    [row] = rows("--step", "turn")
    assert "value" not in row
    assert json.loads(pfl("history", "show", row["record"], "--json")[1])["value"] == {
        "total": 1,
        "seen": [],
    }
    counting.results.delete([records.value_path("abc", row["sha256"])])
    assert (
        "is gone" in json.loads(pfl("history", "show", row["record"], "--json")[1])["value_missing"]
    )


def test_the_conversation_of_the_flow_chat_goes_on_from_run_to_run(project):
    project.call("ann", flow="chat", params={"message": "Hello, my name is Ann."})
    second = project.call("ann", flow="chat", params={"message": "What now?"})
    assert (
        values(second)["answer"]
        == "Ann, this is your message 2, before it you said 'Hello, my name is Ann.'."
    )
    again = project.call("ann", flow="chat", params={"message": "What now?"})
    assert set(statuses(again).values()) == {"hit"}
    more = project.call("ann", flow="chat", params={"message": "What now?"}, bust="all")
    assert "message 3" in values(more)["answer"] and len(values(more)["chat"]) == 6
    assert "message 1" in values(project.call("bob", flow="chat"))["answer"]


# What is listed.


def test_names_come_newest_first_of_a_step_of_an_id_and_of_all(store):
    for number in range(5):
        put(store, number, number, id=f"id{number % 2}/é", step="ab"[number % 2])
    history.note(store, history.ALL, "a", history.BUSTED, {"id": None, "why": "x"})
    found = [name.time_ns // 10**9 - 1_700_000_000 for name in history.list_names(store)]
    assert found[1:] == [4, 3, 2, 1, 0] and found[0] > 4
    folder = keys.encode_id("id1/é")
    assert [name.status for name in history.list_names(store, folder=folder)] == [
        "busted",
        "computed",
        "computed",
    ]
    assert [name.step for name in history.list_names(store, step="b")] == ["b", "b"]
    assert [
        body["value"]
        for _, body in history.list_records(store, id="id0/é", status="computed", warn=pytest.fail)
    ] == [4, 2, 0]
    assert [
        body["value"]
        for _, body in history.list_records(
            store, since_ns=1_700_000_003 * 10**9, status="computed", warn=pytest.fail
        )
    ] == [4, 3]


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_the_newest_cost_the_same_however_many_there_are(request, tmp_path, kind):
    """Counted in requests, and in names looked at: no clock says anything here."""
    from pfl.handler.core.store import objects as stores

    url = f"s3://{request.getfixturevalue('bucket')}" if kind == "s3" else str(tmp_path)
    environ = request.getfixturevalue("s3_env") if kind == "s3" else {}
    costs = []
    for count in (30, 60):
        opened = stores.open_store(url, environ=environ)
        for number in range(count):
            put(opened, count * 10_000 + number, number, id=f"id{number % 7}")
        opened.counts.clear()
        found = history.list_records(opened, warn=pytest.fail)
        assert [next(found)[1]["value"] for _ in range(3)] == [count - 1, count - 2, count - 3]
        found.close()
        costs.append(dict(opened.counts))
    # How many of those that are read ahead are under way when it is closed is up to the threads.
    assert costs[0]["list"] == costs[1]["list"] <= 3 and all(
        6 <= cost["get"] <= 30 for cost in costs
    )


def test_an_id_with_a_thousand_steps_is_one_listing(counting):
    for number in range(40):
        put(counting.results, number, number, step=f"s{number:02d}")
    counting.results.counts.clear()
    assert [
        body["value"]
        for _, body in history.list_records(counting.results, id="abc", warn=pytest.fail)
    ][:3] == [39, 38, 37]
    assert counting.results.counts["list"] <= 4


def test_damaged_records_and_those_of_another_version_are_told_skipped_and_counted(counting):
    names = [put(counting.results, number, number) for number in range(4)]
    counting.results.put(names[1].path, b"no record")
    counting.results.put(names[2].path, records.seal({"version": 2, "id": "abc"}))
    counting.results.delete(
        [names[0].path]
    )  # Its index entry stays: a writer that died between the two.
    code, out, err = pfl("history", "ls", "--json")
    assert (code, [json.loads(line)["value"] for line in out.splitlines()]) == (0, [3])
    assert "version 2" in err and err.count("warning: ") == 2
    assert pfl("history", "show", names[1].short)[0] == 6
    assert pfl("history", "show", names[0].short)[0] == 3
    assert pfl("history", "export")[1].count("\n") == 1


def test_a_record_in_the_folder_of_another_id_is_no_value_of_that_id(store):
    """A file system that ignores case keeps ABC and abc in one folder: that is not damage."""
    warnings: list[str] = []
    for id in ("ABC", "other"):
        own = put(store, len(id), 1, id=id)
        store.put(own._replace(folder="abc").path, store.get(own.path))
    assert list(history.list_computed(store, "abc", "b", warnings.append)) == []
    (warning,) = warnings
    assert "is damaged" in warning and "'other'" in warning


def test_a_list_that_is_followed_goes_on_with_what_comes(counting):
    counting.call()
    command = [
        sys.executable,
        "-c",
        "from pfl.cli.main import main; main()",
        "history",
        "ls",
        "-f",
        "--limit",
        "1",
        "--json",
    ]
    with subprocess.Popen(
        command,
        cwd=counting.root,
        env={"PATH": "", "HOME": str(counting.root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert json.loads(process.stdout.readline())["step"] == "twice"
        counting.call("new", step="turn")
        assert json.loads(process.stdout.readline())["id"] == "new"
        process.terminate()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "zz"], 2, "is not the name of a record"),
        (["show", "123456"], 3, "record 123456 not found"),
        (["ls", "--since", "soon"], 2, "invalid --since 'soon'"),
        (["ls", "--status", "good"], 2, "'good' is not one of 'computed'"),
        (["diff"], 2, "nothing to compare"),
        (["diff", "--id", "none"], 3, "no step has two records"),
        (["diff", "--id", "abc", "--tolerance", "much"], 2, "--tolerance"),
        (["bisect", "--id", "abc", "--step", "b"], 3, "computed for 'abc': a of flow f"),
        (["bisect", "--id", "abc", "--step", "b", "--path", "total"], 2, "invalid --path"),
        (["export", "--out", "absent/all.jsonl"], 2, "absent/all.jsonl cannot be written"),
        (["export", "--format", "parquet"], 2, "'parquet' is not one of 'jsonl'"),
        (["prune", "--older-than", "old"], 2, "--older-than"),
        (["diff", "1", "2", "--step", "b"], 2, "two records and --step cannot be used together"),
    ],
)
def test_bad_input_is_told_with_its_exit_code(counting, words, code, said):
    put(counting.results, 1, "text", step="a")
    found, _, err = pfl("history", *words)
    assert (found, said in err, "Traceback" in err) == (code, True, False), err


def test_a_short_name_that_fits_two_records_is_refused(counting):
    name = put(counting.results, 1, 1)
    other = history.Name("other", "b", name.file)
    history.append(counting.results, other, {"id": "other", "step": "b"})
    history.point(counting.results, [other])
    code, _, err = pfl("history", "show", name.short)
    assert code == 2 and name.path in err and other.path in err
    assert pfl("history", "show", name.short[:4], "--id", "abc")[0] == 0


# What differs.


def test_a_diff_tells_paths_numbers_texts_and_rows():
    old = {
        "n": 4,
        "t": "one\ntwo",
        "rows": [{"id": 1, "v": 1}, {"id": 2, "v": 2}],
        "gone": None,
        "same": [1, 1.0, True],
        "list": [1, 2],
    }
    new = {
        "n": 5,
        "t": "one\n2",
        "rows": [{"id": 2, "v": 2.5}, {"id": 3, "v": 0}, {"id": 1, "v": 1}],
        "a b": 1,
        "same": [1.0, 1.0, 1],
        "list": [1],
    }
    found = {change["path"]: change for change in compare.changes(old, new)}
    assert found.pop("$.n") == {
        "path": "$.n",
        "change": "changed",
        "old": 4,
        "new": 5,
        "delta": 1,
        "ratio": 0.25,
    }
    assert found.pop("$.t")["diff"] == [
        "--- old",
        "+++ new",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+2",
    ]
    assert found.pop("$.rows[id=2].v")["delta"] == 0.5
    assert found.pop("$.rows[id=3]") == {
        "path": "$.rows[id=3]",
        "change": "added",
        "new": {"id": 3, "v": 0},
    }
    assert (
        found.pop("$.gone")["change"],
        found.pop('$["a b"]')["change"],
        found.pop("$.list[1]")["change"],
    ) == ("removed", "added", "removed")
    assert sorted(found) == ["$.same[0]", "$.same[2]"]
    within = [
        change["path"] for change in compare.changes(old, new, within=compare.tolerance("20%"))
    ]
    assert "$.n" not in within and "$.rows[id=2].v" not in within and "$.t" in within
    assert "$.n" in [
        change["path"] for change in compare.changes(old, new, within=compare.tolerance("0.5"))
    ]
    huge = 10**400  # More than a float holds.
    for a, b, allowed, count in (
        (huge, huge + 4, "5", 0),
        (huge, huge + 6, "5", 1),
        (huge, huge + 1, "1%", 0),
        (huge, 2 * huge, "1%", 1),
        (1.5, huge, "99%", 1),
    ):
        assert len(found := compare.changes([a], [b], within=compare.tolerance(allowed))) == count
        assert not any({"delta", "ratio"} & each.keys() for each in found if abs(b - int(a)) > 9)


def test_a_diff_of_an_id_names_value_code_input_and_parameter(project, monkeypatch):
    monkeypatch.setenv("PFL_ENGINE", "direct")
    project.write(OUTSIDE)
    change(project, 1)
    project.call()
    project.write(OUTSIDE.replace("return a + int", "return a + 1 + int"))
    project.call(params={"rate": 3})
    code, out, err = pfl("history", "diff", "--id", "abc")
    assert code == 1, err
    assert "$: 4 → 5  (+1, +25.00%)" in out and "code: `b()` in flows/pipeline.py" in out
    assert "input: `b`: 4 → 5" in out and "param: `rate`: 10 → 3" in out
    said = json.loads(pfl("history", "diff", "--id", "abc", "--json", "--step", "b")[1])
    assert (said["equal"], [step["step"] for step in said["steps"]]) == (False, ["b"])
    assert pfl("history", "diff", "--id", "abc", "--tolerance", "63%")[0] == 0
    project.call("def")
    code, out, _ = pfl("history", "diff", "--id", "abc", "--id", "def", "--json")
    assert (code, [step["equal"] for step in json.loads(out)["steps"]]) == (1, [True, True, False])


def test_what_has_no_value_cannot_be_compared_and_is_told(counting):
    counting.call()
    counting.call(params={"by": 0})
    failed, _, turn = rows("--limit", "3")
    code, _, err = pfl("history", "diff", turn["short"], failed["short"], "--json")
    assert (code, failed["status"]) == (1, "failed") and "different" in err


def test_bisect_finds_the_first_change_and_what_changed_with_it(counting):
    for number, total in enumerate([1, 1, 1, 5, 1, 7]):
        put(
            counting.results, number, {"total": total, "n": number}, params={"rate": int(total > 1)}
        )
    code, out, err = pfl(
        "history", "bisect", "--id", "abc", "--step", "b", "--path", "$.total", "--json"
    )
    said = json.loads(out)
    assert (code, said["from"], said["to"], said["param_changes"]) == (
        0,
        1,
        5,
        ["`rate`: 0 → 1"],
    ), err
    assert (
        "$.total: 1 → 5"
        in pfl("history", "bisect", "--id", "abc", "--step", "b", "--path", "$.total")[1]
    )
    assert pfl("history", "bisect", "--id", "abc", "--step", "b", "--path", "$.none")[0] == 3


# What leaves it.


def test_export_writes_every_record(counting, tmp_path):
    counting.call()
    counting.call(bust="all")
    lines = [json.loads(line) for line in pfl("history", "export")[1].splitlines()]
    assert [(row["step"], row["status"]) for row in lines] == [
        ("twice", "computed"),
        ("turn", "computed"),
    ] * 2
    table = pfl("history", "export", "--format", "csv", "--step", "twice")[1].splitlines()
    assert table[0].startswith("record,written_at,status") and len(table) == 3
    out = tmp_path / "all.jsonl"
    assert pfl("history", "export", "--out", str(out))[0] == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
    code, _, err = pfl("history", "export", "--out", str(tmp_path / "none" / "x"))
    assert (code, "cannot be written" in err, "No such file" in err) == (2, True, True)
    code, _, err = pfl("history", "export", "--out", "/dev/full")
    assert (code, "/dev/full cannot be written" in err, "No space left" in err) == (2, True, True)
    assert pfl("history", "export", "--out", str(out), "--since", "soon")[0] == 2
    assert out.read_text() != ""


def test_a_record_of_another_id_is_not_shown(counting):
    name = put(counting.results, 1, 1)
    code, _, err = pfl("history", "show", name.path, "--id", "other")
    assert (code, f"record {name.path} does not exist for 'other'" in err) == (3, True)
    assert pfl("history", "show", name.path, "--id", "abc")[0] == 0


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_no_text_of_an_exported_table(counting, start):
    put(counting.results, 1, f"{start}1", id="=cmd", why=f"{start}HYPERLINK(1)")
    put(counting.results, 2, -5, id="=cmd")
    rows = list(csv.DictReader(io.StringIO(pfl("history", "export", "--format", "csv")[1])))
    assert rows[1]["why"] == "'" + output.printable(f"{start}HYPERLINK(1)")
    assert [row["value"] for row in rows] == ["-5", json.dumps(f"{start}1")]


def test_prune_asks_and_keeps_the_newest_value_of_each_step(counting):
    for number in range(4):
        put(counting.results, number, number)
        put(counting.results, number, number, step="c")
    put(counting.results, 9, None, status="failed")
    assert pfl("history", "prune", "--older-than", "1d")[0] == 2
    assert pfl("history", "prune", "--older-than", "1d", "--dry-run")[1] == "7\n"
    assert len(rows()) == 9
    assert (
        json.loads(pfl("history", "prune", "--older-than", "1d", "--yes", "--json")[1])["pruned"]
        == 7
    )
    assert [(row["step"], row["value"]) for row in rows()] == [("b", 3), ("c", 3)] or [
        (row["step"], row["value"]) for row in rows()
    ] == [("c", 3), ("b", 3)]
    assert [entry.key.count("=") for entry in counting.results.list("recent")] == [1, 1]
    assert pfl("history", "prune", "--older-than", "1d", "--yes")[1] == "0\n"


def test_prune_keeps_the_newest_value_that_can_be_read(counting):
    names = [put(counting.results, number, number) for number in range(3)]
    counting.results.put(names[-1].path, b"no record")
    assert pfl("history", "prune", "--older-than", "1d", "--yes")[1] == "2\n"
    assert [row["value"] for row in rows()] == [1]


def test_what_would_delete_refuses_a_store_of_another_format(counting):
    counting.call()
    counting.call(bust="all")
    before = len(rows())
    counting.results.put("format.json", b'{"version": 9, "by": "pfl"}')
    code, _, err = pfl("history", "prune", "--older-than", "0s", "--yes")
    assert (code, "9" in err) == (2, True)
    assert len(rows()) == before > 2


def test_an_empty_prefix_is_refused(counting):
    counting.call()
    assert (
        pfl("cache", "bust", "--prefix", "", "--yes")[0]
        == pfl("cache", "bust", "--step", "~", "--yes")[0]
        == 2
    )
    assert counting.call()["store"] == {"get": 1}


@pytest.mark.parametrize(
    "path", ["", "total", "$total", "$.", "$..n", "$[", "$[0", "$[-1]", "$['n']", "$.a b", "$.n]"]
)
def test_a_path_that_cannot_be_parsed_is_an_error(counting, path):
    put(counting.results, 1, {"n": 1})
    code, _, err = pfl("history", "bisect", "--id", "abc", "--step", "b", "--path", path)
    assert (code, f"invalid --path {path!r}" in err) == (2, True), err


@pytest.mark.parametrize(
    "value",
    [
        {"a b": {"n": [0, {"id": "x]y", "v": 1}]}, 'q"uo]te': {"ü": 1}, "plain-name": 1},
        [{"id": 7, "v": 1}, {"id": "b\nc", "v": [[1]]}],
    ],
)
def test_each_path_of_a_difference_finds_its_part(value):
    """Also where a name or an ID has characters that a path uses itself."""
    found = compare.changes(value, json.loads(json.dumps(value).replace("1", "2")))
    assert found
    for each in found:
        assert compare.at(value, each["path"]) == each["old"]
