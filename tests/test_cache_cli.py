"""``pfl cache`` as a person and a script meet it: real processes, exit codes, both streams."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys

import forked
import pytest
from test_bust import OUTSIDE, change

RUN = [sys.executable, "-c", "from pfl.cli.main import main; main()"]


@pytest.fixture
def pfl(project):
    """Runs the command in the project: exit code, standard output, standard error."""
    project.write(OUTSIDE)
    change(project, 1)

    def run(*words: str, stdin=subprocess.DEVNULL, **environ: str) -> tuple[int, str, str]:
        more = {"PFL_ENGINE": "direct", "PYTHONWARNINGS": "error"}
        done = forked.run([*RUN, *words], stdin=stdin, env={**os.environ, **more, **environ})
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_bust_shows_what_goes_asks_nothing_when_told_yes_and_names_its_restore(pfl, project):
    project.call()
    code, out, err = pfl("cache", "bust", "--id", "abc", "--step", "b", "--yes")
    assert code == 0
    assert out.split()[:5] == ["step", "results", "bytes", "oldest", "newest"]
    assert out.splitlines()[1].split()[:2] == ["b", "1"]
    name = err.rstrip().rsplit(" ", 1)[1]
    assert project.call(cached_only=True)["status"] == "miss"
    code, out, err = pfl("cache", "restore", name, "--yes")
    assert (code, "earlier results are valid again" in err) == (0, True)
    assert project.call(cached_only=True)["status"] == "completed"


def test_a_bust_of_a_prefix_wins_over_what_is_being_computed(pfl, project):
    busting = [*RUN, "cache", "bust", "--prefix", "a", "--yes"]
    project.write(
        "import subprocess\nfrom pfl import flow, step\n\n\n@step\ndef a(id: str) -> int:\n"
        f"    subprocess.run({busting!r}, check=True)\n    return 1\n\n\n"
        "FLOWS = [flow('racing', a)]\n"
    )
    assert pfl("invoke", "--id", "abc")[0] == 0
    assert pfl("invoke", "--id", "abc", "--cached-only")[0] == 3


def test_a_dry_run_says_the_same_and_does_nothing(pfl, project):
    project.call()
    code, out, _ = pfl(
        "cache", "bust", "--id", "abc", "--step", "b", "--dependents", "--dry-run", "--json"
    )
    said = json.loads(out)
    assert (code, said["bust"], said["dry_run"]) == (0, None, True)
    assert {row["step"]: row["results"] for row in said["steps"]} == {"b": 1, "c": 1}
    assert project.call()["store"] == {"get": 1}
    code, out, _ = pfl(
        "cache", "bust", "--id", "abc", "--step", "b", "--upstream", "--yes", "--json"
    )
    said = json.loads(out)
    assert {row["step"]: row["results"] for row in said["steps"]} == {"a": 1, "b": 1}
    assert (said["plans"], bool(said["bust"]), bool(said["restorable_until"])) == (3, True, True)
    code, out, _ = pfl("cache", "restore", "--dry-run", "--json")
    assert (code, [row["step"] for row in json.loads(out)["restored"]]) == (0, ["a", "b"])
    assert project.call(cached_only=True)["status"] == "miss"


def test_without_a_terminal_nothing_is_asked_and_nothing_is_done(pfl, project):
    project.call()
    code, out, err = pfl("cache", "bust", "--id", "abc")
    assert (code, "--yes" in err) == (2, True)
    assert project.call()["store"] == {"get": 1}


@pytest.mark.parametrize(
    ("answer", "code", "status"), [(b"y\n", 0, "miss"), (b"n\n", 1, "completed")]
)
def test_on_a_terminal_the_answer_decides(pfl, project, answer, code, status):
    project.call()
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    environ = {**os.environ}
    done = subprocess.run(
        [*RUN, "cache", "bust", "--id", "abc"],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=environ,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == code
    assert project.call(cached_only=True)["status"] == status


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["bust", "--yes"], 2, "no results to bust are selected"),
        (["bust", "--step", "nope", "--yes"], 2, "unknown step"),
        (["bust", "--id", "a", "--prefix", "b", "--yes"], 2, "cannot be used together"),
        (["bust", "--step", "b", "--dependents", "--upstream"], 2, "cannot be used together"),
        (["bust", "--id", "abc", "--dependents"], 2, "needs --step"),
        (["bust", "--id", "", "--yes"], 2, "the ID is empty"),
        (["bust", "--prefix", "\udcff", "--yes"], 2, "the ID has U+DCFF"),
        (["restore", "--yes"], 2, "no bust is selected"),
        (["restore", "nope", "--yes"], 3, "bust nope cannot be restored"),
        (["restore", "--id", "abc", "--yes"], 3, "no bust can be restored"),
        (["ls", "--id", "abc", "--step", "../x"], 0, "0 stored"),
        (["verify", "--bogus"], 2, "No such option"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_exit_code(pfl, words, code, told):
    done = pfl("cache", *words)
    assert done[0] == code
    assert done[1] == ""
    assert told in done[2]
    assert "Traceback" not in done[2]


def test_an_age_that_is_older_than_any_calendar_lists_all_records(pfl, project):
    project.call()
    assert pfl("history", "ls", "--since", "999999999w", "--json")[1].count("\n") == 3


def test_a_bust_whose_retention_is_over_cannot_be_restored(pfl, project):
    project.call()
    pfl("cache", "bust", "--id", "abc", "--yes")
    code, out, err = pfl(
        "cache", "restore", "--id", "abc", "--yes", "--json", PFL_RETENTION_DAYS="0"
    )
    assert (code, json.loads(out)["error"]["type"]) == (3, "NotFoundError")
    assert "kept for 0 days" in err


def test_verify_exits_6_for_damage_and_0_once_it_is_set_aside(pfl, project):
    project.call()
    assert pfl("cache", "verify")[::2] == (
        0,
        "12 checked: 0 damaged, 0 orphaned, 0 expired, 0 stale\n",
    )
    [path] = [entry.key for entry in project.results.list("results/abc/b")]
    project.results.put(path, b"x")
    code, out, err = pfl("cache", "verify", "--json")
    assert (
        code,
        json.loads(out)["object"],
        json.loads(out)["problem"],
        json.loads(out)["aside"],
    ) == (
        6,
        path,
        "damaged",
        None,
    )
    assert pfl("cache", "verify", "--repair", "--dry-run")[0] == 6
    code, out, err = pfl("cache", "verify", "--repair")
    assert (code, out.split()[0], "1 set aside" in err) == (0, "damaged", True)
    assert pfl("cache", "verify")[0] == 0


def test_stats_counts_each_step_of_each_flow(pfl, project):
    project.call()
    project.call("x")
    code, out, _ = pfl("cache", "stats", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(r["flow"], r["step"], r["results"], r["plans"], r["history"]) for r in rows] == [
        ("chain", s, 2, 2, 2) for s in "abc"
    ]
    assert all(r["bytes"] > 500 and r["oldest"] <= r["newest"] for r in rows)
    code, out, _ = pfl("cache", "stats", "--id", "x")
    assert (code, out.splitlines()[1].split()[:5]) == (0, ["chain", "a", "1", "1", "1"])


def test_stats_bust_and_restore_work_also_where_the_flows_cannot_be_imported(pfl, project):
    project.call()
    (project.root / "flows" / "pipeline.py").write_text("import nowhere_at_all\n")
    code, out, err = pfl("cache", "stats", "--json")
    assert [(r["flow"], r["step"], r["results"]) for r in map(json.loads, out.splitlines())] == [
        (None, s, 1) for s in "abc"
    ]
    assert (code, "cannot be imported" in err) == (0, True)
    assert [
        s["results"]
        for s in json.loads(pfl("cache", "bust", "--id", "abc", "--yes", "--json")[1])["steps"]
    ] == [1, 1, 1]
    assert json.loads(pfl("cache", "restore", "--id", "abc", "--yes", "--json")[1])["plans"] == 0
    assert pfl("cache", "bust", "--id", "abc", "--step", "b", "--yes")[0] == 2


def test_inspect_cuts_a_long_text_and_tells_a_text_from_a_number(pfl, project):
    file = project.root / "flows" / "pipeline.py"
    source = file.read_text()
    steps = (
        "from pfl import step\n\n\n@step\ndef digits(id: str) -> str:\n    return '12'\n\n\n"
        "@step\ndef long(id: str) -> str:\n    return 'x' * 100_000\n\n\n"
    )
    listed = source.replace("FLOWS = [", "FLOWS = [flow('texts', digits, long), ", 1)
    file.write_text(listed.replace("FLOWS", f"{steps}FLOWS", 1))
    assert pfl("invoke", "--id", "abc", "--flow", "texts")[0] == 0
    out = pfl("cache", "inspect", "--id", "abc", "--flow", "texts")[1]
    assert '"12"' in out
    assert len(out) < 5_000


def test_inspect_tells_of_a_bust(pfl, project):
    project.call()
    pfl("cache", "bust", "--id", "abc", "--step", "b", "--yes")
    code, out, _ = pfl("cache", "inspect", "--id", "abc", "--json")
    rows = {row["step"]: row for row in map(json.loads, out.splitlines())}
    assert (rows["b"]["current"], bool(rows["b"]["busted_at"])) == (False, True)
    assert (rows["a"]["current"], rows["a"]["busted_at"]) == (True, None)
    change(project, 5)
    project.call()
    pfl(
        "cache", "restore", "--id", "abc", "--yes"
    )  # Its plan is gone; a call finds it by its inputs.
    rows = map(json.loads, pfl("cache", "inspect", "--id", "abc", "--json")[1].splitlines())
    assert [(row["current"], row["busted_at"], row["value"]) for row in rows] == [
        (True, None, value) for value in (3, 4, 40)
    ]


def test_a_store_of_another_format_is_not_written_by_any_command(pfl, project):
    project.call()
    project.results.put("format.json", b'{"version": 7}')
    for words in (["bust", "--id", "abc", "--yes"], ["verify", "--repair"]):
        code, _, err = pfl("cache", *words)
        assert (code, "format 2" in err) == (2, True)
    assert pfl("cache", "verify")[0] == 0
    assert pfl("invoke", "--id", "abc")[0] == 0
    assert pfl("invoke", "--id", "new")[0] == 2


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("s4://bucket", 2, "PFL_STORE is not a store"),
        ("s3:/bucket", 2, "PFL_STORE is not a store"),
        ("/nowhere/at/all", 5, "does not exist"),
        ("s3://no-such-bucket-here/pfl", 5, "create the bucket"),
    ],
)
def test_a_store_that_is_not_there_is_said_by_every_command(pfl, s3_env, url, code, told):
    for words in (
        ["cache", "verify"],
        ["cache", "bust", "--id", "abc", "--yes"],
        ["invoke", "--id", "abc"],
    ):
        done = pfl(*words, PFL_STORE=url)
        assert (done[0], told in done[2]) == (code, True), (words, done)


SECOND = """
from pfl import step


@step
def other(id: str, good: bool = False) -> int:
    if not good:
        raise ValueError("no good")
    return 1


"""


@pytest.fixture
def two_flows(pfl, project):
    """The flow chain, which has results, and the flow second, which fails."""
    file = project.root / "flows" / "pipeline.py"
    source = file.read_text().replace("FLOWS = [", "FLOWS = [flow('second', other), ")
    file.write_text(source.replace("FLOWS", f"{SECOND}FLOWS", 1))
    assert pfl("invoke", "--id", "a b", "--flow", "chain")[0] == 0
    return pfl


@pytest.mark.parametrize("command", ["inspect", "why"])
def test_an_id_of_another_flow_is_answered_with_that_flow_and_the_command(two_flows, command):
    code, out, err = two_flows("cache", command, "--id", "a b", "--flow", "second")
    assert code == (3 if command == "inspect" else 0)
    assert "computed for 'a b': a, b, c of flow chain" in err
    pasted = shlex.split(re.search(r"pfl (cache \w+ --id .*)", err)[1])
    code, out, err = two_flows(*pasted, "--json")
    assert (code, [json.loads(line)["step"] for line in out.splitlines()]) == (0, ["a", "b", "c"])


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "ls", "--id", "a b", "--flow", "second"],
        ["cache", "ls", "--id", "a b", "--step", "other"],
        ["history", "ls", "--id", "a b", "--flow", "second"],
        ["history", "ls", "--id", "a b", "--step", "other"],
        ["history", "diff", "--id", "a b", "--step", "other"],
        ["history", "bisect", "--id", "a b", "--step", "other"],
    ],
)
def test_a_search_that_finds_nothing_reports_what_the_id_has(two_flows, words):
    assert "computed for 'a b': a, b, c of flow chain" in two_flows(*words)[2]
    words[words.index("a b")] = "unknown"
    assert "nothing was computed for 'unknown'" in two_flows(*words)[2]


def test_a_step_that_failed_is_explained_by_when_and_with_what(two_flows):
    assert two_flows("invoke", "--id", "abc", "--flow", "second")[0] == 4
    code, out, _ = two_flows("cache", "why", "--id", "abc", "--flow", "second")
    assert code == 0
    assert re.fullmatch(
        r"other: miss, because never completed: failed at \S+Z with ValueError: no good\n", out
    )
    assert "failed at" in two_flows("plan", "--id", "abc", "--flow", "second")[1]
    good = ["--id", "abc", "--flow", "second", "--param", "good=true"]
    assert two_flows("invoke", *good)[0] == 0
    assert two_flows("cache", "why", *good)[1].startswith("other: hit, computed at ")
    # A result that is newer than the failure is what the call is compared with.
    changed = two_flows("cache", "why", "--id", "abc", "--flow", "second")[1]
    assert changed == "other: miss, because parameter `good`: true → false\n"


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "accept", "--step", "a", "--undo", "--from", "ab"],
        ["cache", "verify", "--dry-run"],
        ["cache", "restore", "no-such-bust", "--id", "abc"],
        ["setup", "rm", "automations", "--name", "other"],
        ["setup", "rm", "blocks", "--pool", "other"],
        ["setup", "blocks", "--with-keys"],
    ],
)
def test_an_option_without_effect_is_refused(pfl, project, words):
    project.call()
    code, out, err = pfl(*words)
    assert (code, out) == (3 if "restore" in words else 2, ""), err


def test_one_name_that_is_not_a_bust_restores_none(pfl, project):
    project.call()
    name = json.loads(pfl("cache", "bust", "--id", "abc", "--yes", "--json")[1])["bust"]
    code, _, err = pfl("cache", "restore", name, "mistyped", "--yes")
    assert (code, "bust mistyped cannot be restored" in err) == (3, True)
    assert project.call(cached_only=True)["status"] == "miss"


def shapes(data: object, found: dict[str, set[str]]) -> None:
    """Collect the JSON types of each field, and check each moment."""
    if isinstance(data, list):
        for each in data:
            shapes(each, found)
    elif isinstance(data, dict):
        for name, value in data.items():
            kind = {int: "number", float: "number"}.get(type(value), type(value).__name__)
            if name not in VALUES and value is not None:
                found.setdefault(name, set()).add(kind)
                shapes(value, found)
            if name.endswith("_at") and value is not None:
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value), name


# A user's values have any shape; inputs and params have a user's names.
VALUES = {"value", "old", "new", "from", "to", "inputs", "params", "fields"}


def test_a_field_has_one_shape_in_the_json_of_every_command(pfl, project):
    """The reply, whose fields are stable, is among them."""
    project.call()
    change(project, 2)
    project.call(bust="all", params={"rate": 3})
    found: dict[str, set[str]] = {}
    inputs = []
    for words in (
        ["invoke", "--id", "abc"],
        ["plan", "--id", "abc"],
        ["cache", "ls"],
        ["cache", "inspect", "--id", "abc"],
        ["cache", "why", "--id", "new"],
        ["cache", "stats"],
        ["cache", "bust", "--id", "abc", "--yes"],
        ["cache", "restore", "--id", "abc", "--yes"],
        ["cache", "verify"],
        ["history", "ls"],
        ["history", "show", history_name(pfl)],
        ["history", "diff", "--id", "abc"],
        ["history", "bisect", "--id", "abc", "--step", "b"],
        ["history", "prune", "--older-than", "7d"],
        ["doctor", "--fast"],
    ):
        code, out, err = pfl(*words, "--json")
        assert code in (0, 1), err
        for line in out.splitlines():
            shapes(json.loads(line), found)
            inputs += json.loads(line).get("inputs", {}).values()
    assert {name: kinds for name, kinds in found.items() if len(kinds) > 1} == {}
    assert inputs and all(given.keys() == {"key", "sha256", "value"} for given in inputs)


def history_name(pfl) -> str:
    return json.loads(pfl("history", "ls", "--step", "b", "--limit", "1", "--json")[1])["record"]


def test_times_are_local_with_their_offset_and_in_utc_if_asked(pfl, project):
    project.call()
    for words in (["cache", "ls"], ["history", "ls"]):
        for option, offset in ((), "+05:30"), (["--utc"], "+00:00"):
            # Only a new process reads the zone.
            environ = {**os.environ, "TZ": "IST-05:30"}
            done = subprocess.run([*RUN, *words, *option], capture_output=True, env=environ)
            assert offset in done.stdout.decode(), done
