"""Every command through a real process: its data on stdout, its words on stderr, its exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import forked
import pytest
import servers
import typer
from conftest import ROOT, Project

from pfl.cli import options, output
from pfl.cli.main import app
from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.store import records

SLOW = """
    import threading

    @step
    def quick(id: str) -> int:
        return 1

    @step
    def hang(id: str) -> int:
        threading.Event().wait()

    FLOWS = [flow("one", hang), flow("two", quick, hang)]
"""


class Ran:
    """What a command left behind: exit code, stdout, stderr."""

    def __init__(self, done: subprocess.CompletedProcess) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    @property
    def data(self) -> dict:
        """stdout, which holds one JSON object and nothing else."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[dict]:
        """stdout, which holds a JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


PFL = [sys.executable, "-c", "from pfl.cli.main import main; main()"]


def pfl(*arguments: str, stdin: str = "", is_new: bool = False, **environ: str) -> Ran:
    """Run ``pfl`` in the project of the test; *is_new*: in a process that starts from nothing."""
    if is_new:
        done = subprocess.run(
            [*PFL, *arguments], input=stdin, capture_output=True, text=True, env=_environ(environ)
        )
    else:
        done = forked.run([*PFL, *arguments], input=stdin, env=_environ(environ))
    assert "Traceback" not in done.stderr
    return Ran(done)


def pfl_on(terminals: str, *arguments: str, stdin: str = "", **environ: str) -> Ran:
    """
    Run ``pfl`` with some of its streams on terminals, and the others on pipes.

    Args:
        terminals: Which: ``out``, ``err``, ``in err``; each has one of its own.
        arguments: The command line.
        stdin: What is typed at the terminal that is stdin.
        environ: Variables.
    """
    ours: dict[int, str] = {}
    theirs = {}
    for name in ("in", "out", "err"):
        if name == "in" and name not in terminals.split():
            theirs[name] = subprocess.DEVNULL
            continue
        ours_end, theirs[name] = pty.openpty() if name in terminals.split() else os.pipe()
        ours[ours_end] = name
        if name == "in":
            os.write(ours_end, stdin.encode())
    streams = {f"std{name}": end for name, end in theirs.items()}
    environ = _environ({"TERM": "xterm", **environ})
    process = forked.Popen([*PFL, *arguments], env=environ, **streams)
    for end in theirs.values():
        if end >= 0:
            os.close(end)
    shown = dict.fromkeys(("in", "out", "err"), b"")
    while set(ours.values()) - {"in"}:
        for end in select.select(list(ours), [], [], 60)[0]:
            try:
                chunk = os.read(end, 65_536)
            except OSError:  # The other side of a terminal is closed.
                chunk = b""
            shown[ours[end]] += chunk
            if not chunk:
                os.close(end)
                del ours[end]
    for end in ours:
        os.close(end)
    code = process.wait(timeout=60)
    out, err = (shown[name].decode().replace("\r\n", "\n") for name in ("out", "err"))
    assert "Traceback" not in err
    return Ran(subprocess.CompletedProcess(arguments, code, out, err))


def leaves(command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command below *command*, by its path."""
    for name, each in getattr(command, "commands", {}).items():
        yield from leaves(each, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
GROUPS = ["", *sorted({path[0] for path in COMMANDS if len(path) > 1})]


def _environ(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PFL_ENGINE": "direct", **more}


@pytest.fixture(autouse=True)
def without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run commands in this process, whose flags stay set."""
    monkeypatch.setattr(output, "in_json", False)
    monkeypatch.setattr(output, "in_utc", False)


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project as a person has it: found from the working directory."""
    monkeypatch.delenv("PFL_PROJECT")
    return project


def test_invoke_prints_a_table_and_says_where_it_runs(here):
    first = pfl("invoke", "--id", "abc", is_new=True)
    assert first.code == 0
    assert [re.split(r"  +", line) for line in first.out.splitlines()][0] == [
        "step",
        "status",
        "value",
        "time",
        "why",
    ]
    assert [line.split()[:3] for line in first.out.splitlines()[1:]] == [
        ["a", "computed", "1234"],
        ["b", "computed", "411.3333333333333"],
        ["c", "computed", "4113.333333333333"],
    ]
    assert f"running here, store {here.root}/.pfl/store" in first.err
    assert "0 of 3 steps from the cache" in first.err
    assert "3 of 3 steps from the cache" in pfl("invoke", "--id", "abc", is_new=True).err


def test_a_project_that_is_not_there_is_told_and_not_made(tmp_path, monkeypatch):
    absent = tmp_path / "absent"
    monkeypatch.setenv("PFL_PROJECT", str(absent))
    for arguments in (["cache", "ls"], ["doctor", "--fast"], ["invoke", "--id", "abc"]):
        done = pfl(*arguments)
        assert (done.code, done.out) == (2, "") and "this directory does not exist" in done.err
    assert not absent.exists()


def test_invoke_as_json_is_the_reply_and_nothing_else(here):
    pfl("invoke", "--id", "abc")
    reply = pfl("invoke", "--id", "abc", "--step", "c", "--json").data
    assert (reply["status"], [row["status"] for row in reply["steps"]], reply["store"]) == (
        "completed",
        ["hit"],
        {"get": 1},
    )
    assert {
        row["step"]: row["value"] for row in pfl("invoke", "--id", "abc", "--json").data["steps"]
    } == {
        "a": 1234,
        "b": 411.3333333333333,
        "c": 4113.333333333333,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--id", ""], "the ID is empty"),
        ([], "the ID is missing"),
        (["--id", "x" * 513], "the ID has 513 bytes"),
        (["--id", "a\nb"], "the ID has U+000A at position 1"),
        (["--id", "abc", "--step", "z"], "unknown step 'z'"),
        (["--id", "abc", "--flow", "z"], "unknown flow 'z'"),
        (["--id", "abc", "--param", "rate=2"], "unknown parameter 'rate'"),
        (["--id", "abc", "--param", "rate"], "has no value"),
        (["--id", "abc", "--param", "a=1", "--param", "a=2"], "given twice"),
        (
            ["--flow", "audit", "--id", "pip", "--param", "top=many"],
            "parameter top cannot be 'many'",
        ),
        (["--id", "abc", "--bust", "z"], "unknown step 'z'"),
        (["--id", "abc", "--step", "a", "--bust", "c"], "not needed for a"),
        (["--id", "abc", "--skip", "a", "--bust", "a"], "both busted and skipped"),
        (["--id", "abc", "--engine", "dask"], "'dask' is not one of 'prefect', 'direct'"),
        (["--id", "abc", "--async"], "no function was deployed"),
        (["--id", "abc", "--nope"], "No such option: --nope"),
        (["--event", "{"], "the event is not JSON"),
        (["--event", "[]"], "a list, not an object"),
        (["--event", '{"id": "abc", "ids": 1}'], "unknown field 'ids'"),
        (["--event", '{"id": 7}'], "the ID is a number"),
        (["--event", '{"id": "abc", "bust": "these"}'], "bust is 'these'"),
        (["--event", "@nowhere.json"], "cannot be read"),
        (["--event", "{}", "--id", "abc"], "do not go together"),
    ],
)
def test_invoke_refuses_what_is_wrong_in_words_and_with_exit_code_2(here, arguments, words):
    ran = pfl("invoke", *arguments, "--json")
    assert ran.code == 2
    assert words in ran.err and "hint: " in ran.err
    assert (
        ran.data["status"] == "invalid"
        and words in ran.data["error"]["what"] + ran.data["error"]["why"]
    )
    assert ran.data["error"]["hint"]
    assert not (here.root / ".pfl" / "store" / "results").exists()


@pytest.mark.parametrize(
    "id", ["../../x", "a/b", "%2e%2e", "..", ".", "🦜", "שלום", "a b", "-", "C:\\x"]
)
def test_any_other_id_is_kept_in_its_folder_and_comes_back_unchanged(here, id):
    assert pfl("invoke", f"--id={id}", "--json").data["id"] == id
    store = here.root / ".pfl" / "store"
    stored = [path.relative_to(store).parts for path in store.rglob("*") if path.is_file()]
    assert {parts[2] for parts in stored if parts[0] in ("plans", "results", "history")} == {
        "a",
        "b",
        "c",
    }
    assert [row["id"] for row in pfl("cache", "ls", f"--id={id}", "--json").rows] == [id] * 3


def test_the_event_is_read_from_an_argument_a_file_or_stdin(here):
    (here.root / "event.json").write_text('{"id": "abc", "step": "a"}')
    for given in (
        {"event": '{"id": "abc", "step": "a"}'},
        {"event": "@event.json"},
        {"event": "-", "stdin": '{"id": "abc", "step": "a"}'},
    ):
        event = given.pop("event")
        assert pfl("invoke", "--event", event, "--json", **given).data["steps"][0]["value"] == 1234


def test_a_miss_with_cached_only_is_exit_code_3_and_computes_nothing(here):
    ran = pfl("invoke", "--id", "new", "--cached-only", "--json")
    assert (ran.code, ran.data["status"], ran.data["error"]["type"]) == (3, "miss", "NotFoundError")
    assert not (here.root / ".pfl" / "store" / "results").exists()


def test_a_failing_step_is_exit_code_4_and_names_its_line(here):
    here.write("""
        @step
        def bad(id: str):
            raise ValueError("not today")

        FLOWS = [flow("bad", bad)]
    """)
    ran = pfl("invoke", "--id", "abc", "--json")
    assert (ran.code, ran.data["status"], ran.data["error"]["why"]) == (
        4,
        "failed",
        "ValueError: not today",
    )
    assert "flows/pipeline.py:5" in ran.err


def test_what_a_step_prints_and_its_children_print_stays_off_stdout(here):
    here.write("""
        import os

        print("while importing")

        @step
        def loud(id: str) -> int:
            print("from the step")
            os.system("echo from a child")
            return 7

        FLOWS = [flow("loud", loud)]
    """)
    ran = pfl("invoke", "--id", "abc", "--json")
    assert ran.data["steps"][0]["value"] == 7
    assert all(words in ran.err for words in ("while importing", "from the step", "from a child"))


def test_flows_that_cannot_be_imported_are_named_with_file_and_line(here):
    here.write("def broken(:\n", name="helpers")
    here.write("import flows.helpers\nFLOWS = []\n")
    ran = pfl("invoke", "--id", "abc")
    assert (
        ran.code == 2 and "flows cannot be imported" in ran.err and "flows/helpers.py:1" in ran.err
    )


def test_prefect_that_does_not_answer_is_exit_code_5_and_a_hit_still_works(here):
    pfl("invoke", "--id", "abc")
    nowhere = {"PFL_ENGINE": "prefect", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    assert pfl("invoke", "--id", "abc", **nowhere).code == 0
    ran = pfl("invoke", "--id", "new", **nowhere)
    assert ran.code == 5 and "--engine direct" in ran.err


def test_a_store_that_forbids_is_exit_code_5_and_no_miss(here):
    with servers.Loopback(lambda method, path: servers.s3_error(403, "AccessDenied")) as s3:
        environ = {
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }
        ran = pfl("invoke", "--id", "abc", PFL_STORE="s3://bucket", **environ)
    assert ran.code == 5 and "did not count it as a miss" in ran.err
    assert {method for method, _ in s3.asked} == {"GET"}


def test_a_damaged_result_is_computed_again_with_a_warning_that_names_the_object(here):
    pfl("invoke", "--id", "abc")
    for path in (here.root / ".pfl" / "store").rglob("*"):
        if path.is_file() and path.parts[-4] in ("plans", "results"):
            path.write_bytes(path.read_bytes()[:-9])
    ran = pfl("invoke", "--id", "abc", "--json")
    assert {row["status"] for row in ran.data["steps"]} == {"computed"}
    assert "warning: plans/abc/c/" in ran.err and "is damaged" in ran.err


def test_plan_says_what_would_run_and_why_and_writes_nothing(here):
    store = here.root / ".pfl" / "store"
    plan = pfl("plan", "--id", "abc", "--json").data
    assert [(row["step"], row["status"], row["why"]) for row in plan["steps"]] == [
        (s, "compute", "never computed") for s in "abc"
    ]
    pfl("invoke", "--id", "abc")
    before = sorted(store.rglob("*"))
    assert [row["status"] for row in pfl("plan", "--id", "abc", "--json").data["steps"]] == [
        "hit"
    ] * 3
    (here.root / "flows" / "a.py").write_text(
        (here.root / "flows" / "a.py").read_text().replace("420", "421")
    )
    rows = pfl("plan", "--id", "abc", "--json").data["steps"]
    assert [row["status"] for row in rows] == ["compute", "depends", "depends"]
    assert sorted(store.rglob("*")) == before
    assert pfl("plan", "--id", "").code == 2


def test_inspect_shows_the_real_inputs_and_whether_they_are_current(here):
    assert pfl("cache", "inspect", "--id", "abc").code == 3
    pfl("invoke", "--id", "abc")
    row = pfl("cache", "inspect", "--id", "abc", "--step", "b", "--json").data
    inputs = {name: given["value"] for name, given in row["inputs"].items()}
    assert (inputs, row["value"], row["current"], row["engine"]) == (
        {"a": 1234},
        411.3333333333333,
        True,
        "direct",
    )
    assert (here.root / ".pfl" / "store" / row["object"]).is_file()
    (here.root / "flows" / "b.py").write_text(
        (here.root / "flows" / "b.py").read_text().replace("a / 3", "a / 4")
    )
    assert pfl("cache", "inspect", "--id", "abc", "--step", "b", "--json").data["current"] is False


def test_config_show_says_where_each_value_came_from_and_masks_secrets(here):
    (here.root / ".env").write_text("PREFECT_API_KEY=pnu_0123456789abcdef\nPFL_INLINE_BYTES=10\n")
    ran = pfl("config", "show", "--json", PREFECT_API_URL="https://example.invalid/api")
    told = {row["name"]: (row["value"], row["source"]) for row in ran.rows}
    assert told["PREFECT_API_URL"] == ("https://example.invalid/api", "environment")
    assert told["PREFECT_API_KEY"] == ("pnu_…", ".env")
    assert told["PFL_INLINE_BYTES"] == (10, ".env")
    assert told["PFL_STORE"] == (str(here.root / ".pfl" / "store"), "default")
    assert "0123456789" not in ran.out + ran.err


def test_the_active_prefect_profile_names_the_api(here, tmp_path):
    profiles = tmp_path / "profiles.toml"
    profiles.write_text(
        'active = "work"\n[profiles.work]\nPREFECT_API_URL = "http://prefect.invalid/api"\n'
    )
    told = {
        row["name"]: row
        for row in pfl("config", "show", "--json", PREFECT_PROFILES_PATH=str(profiles)).rows
    }
    assert told["PREFECT_API_URL"]["value"] == "http://prefect.invalid/api"
    assert told["PREFECT_API_URL"]["source"] == "Prefect profile 'work'"


@pytest.mark.parametrize("engine", ["direct", "prefect"])
@pytest.mark.parametrize("flow", ["one", "two"])
def test_ctrl_c_in_the_middle_is_130_and_leaves_no_run_running(here, prefect_server, engine, flow):
    here.write(SLOW)
    environ = _environ({"PFL_ENGINE": engine, "PREFECT_API_URL": prefect_server.url})
    arguments = [*PFL, "invoke", "--id", f"stop-{engine}-{flow}", "--flow", flow, "--json"]
    with forked.Popen(
        arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "hang: computing" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["status"]) == (130, "cancelled"), (
        "".join(seen) + err
    )
    assert "Traceback" not in err
    if engine == "prefect":
        runs = _runs_of(prefect_server.url, f"id=stop-{engine}-{flow}")
        assert runs and {run["state_type"] for run in runs} <= {"CANCELLED", "COMPLETED"}


def _runs_of(api: str, tag: str) -> list[dict]:
    from urllib.request import Request, urlopen

    found = []
    for kind in ("flow_runs", "task_runs"):
        body = json.dumps({"flow_runs": {"tags": {"all_": [tag]}}}).encode()
        with urlopen(
            Request(f"{api}/{kind}/filter", body, {"content-type": "application/json"})
        ) as answer:
            found += json.load(answer)
    return found


def test_a_reader_that_stops_early_is_no_error(here):
    for id in ("a", "b", "c"):
        pfl("invoke", "--id", id)
    for command in ("cache ls --json", "history ls"):
        line = f"set -o pipefail; {sys.executable} -m pfl.cli.main {command} | head -c 1"
        piped = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=_environ({})
        )
        assert (len(piped.stdout), piped.returncode, "Error" in piped.stderr) == (1, 0, False)


def test_on_a_terminal_the_status_links_to_the_run_and_colours_carry_no_meaning(
    on_prefect, monkeypatch
):
    monkeypatch.delenv("PFL_PROJECT")
    environ = {
        "PFL_ENGINE": "prefect",
        "PREFECT_API_URL": str(on_prefect.knobs["prefect_api_url"]),
        "TERM": "xterm-256color",
    }
    shown = _on_terminal(["invoke", "--id", "abc"], environ)
    assert re.search(r"\x1b\]8;[^;]*;http://127\.0\.0\.1:\d+/.*?\x1b\\.{0,12}computed", shown)
    assert "\x1b[" not in pfl("invoke", "--id", "abc").out


def _on_terminal(arguments: list[str], environ: dict[str, str]) -> str:
    ran = pfl_on("out err", *arguments, **environ)
    assert ran.code == 0, ran.err
    return ran.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nope"], 2),
        (["cache"], 2),
        (["cache", "inspect"], 2),
        (["server", "status"], 3),
        (["--help"], 0),
        (["--version"], 0),
    ],
)
def test_a_command_ends_with_the_exit_code_of_its_kind(here, arguments, code):
    assert pfl(*arguments, is_new=True).code == code


def test_an_option_without_its_value_is_told_with_its_own_command(here):
    assert "hint: pfl cache ls --help" in pfl("cache", "ls", "--id").err


def test_the_server_is_started_found_and_stopped(here):
    started = pfl("server", "start", "--json")
    assert started.code == 0 and "starting an embedded Prefect server" in started.err
    try:
        assert pfl("server", "status", "--json").data["pid"] == started.data["pid"]
        assert pfl("server", "start", "--json").data["pid"] == started.data["pid"]
    finally:
        assert pfl("server", "stop", "--json").data == {"stopped": True, "pid": started.data["pid"]}
    assert pfl("server", "status").code == 3
    assert pfl("server", "stop", "--json").data == {"stopped": False}


def test_every_command_has_help_and_the_readme_names_it():
    readme = Path(ROOT, "README.md").read_text()
    named = {" ".join(("pfl", *path)): command for path, command in COMMANDS.items()}
    assert len(named) > 5
    assert [name for name, command in named.items() if not command.help] == []
    assert [name for name in named if name not in readme] == []


def test_a_project_without_an_init_file_runs_its_own_flows(here):
    here.write("""
        @step
        def mine(id: str) -> str:
            return "mine"

        FLOWS = [flow("own", mine)]
    """)
    (here.root / "flows" / "__init__.py").unlink()
    assert pfl("invoke", "--id", "abc", "--json").data["steps"][0]["value"] == "mine"


def test_flows_that_import_prefect_leave_the_home_directory_alone(here, prefect_server, tmp_path):
    with (here.root / "flows" / "pipeline.py").open("a") as pipeline:
        pipeline.write("meaning.to_prefect()\n")
    home = tmp_path / "home"
    home.mkdir()
    environ = {"HOME": str(home), "PREFECT_HOME": "", "PFL_ENGINE": "direct"}
    ran = pfl("invoke", "--id", "abc", is_new=True, **environ)
    assert ran.code == 0 and "| INFO |" not in ran.err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("value", ["\\ud800", "é", "🦜"])
def test_a_value_that_stdout_cannot_encode_is_still_json(here, value):
    here.write(f"""
        @step
        def odd(id: str) -> str:
            return "{value}"

        FLOWS = [flow("odd", odd)]
    """)
    ran = pfl("invoke", "--id", "é", "--json", is_new=True, PYTHONIOENCODING="ascii")
    assert (ran.data["id"], ran.data["steps"][0]["value"]) == ("é", json.loads(f'"{value}"'))
    assert pfl("invoke", "--id", "é", is_new=True, PYTHONIOENCODING="ascii").code == 0


def test_what_a_step_says_cannot_steer_the_terminal(here):
    here.write("""
        @step
        def bad(id: str):
            raise ValueError("one\\ntwo \\x1b[31m")

        FLOWS = [flow("bad", bad)]
    """)
    ran = pfl("invoke", "--id", "abc")
    assert ran.code == 4 and "\x1b" not in ran.err and "two \\u001b[31m" in ran.err


def test_a_narrow_terminal_cuts_values_and_keeps_steps_and_statuses(here):
    shown = _on_terminal(["invoke", "--id", "abc"], {"COLUMNS": "40", "TERM": "xterm"})
    assert all(f"\n{step}  " in shown for step in "abc") and shown.count("computed") >= 3


def test_a_table_wider_than_the_terminal_cuts_what_is_long_and_keeps_every_column(
    monkeypatch, capsys
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    output.table(["step", "value", "time>", "why"], [("a", "v" * 99, "1 ms", "🦜" * 99)])
    row = capsys.readouterr().out.splitlines()[1]
    step, value, *time, why = row.removesuffix("…").rstrip().split()
    assert (
        (step, time) == ("a", ["1", "ms"])
        and row.endswith("…")
        and value == "v" * (len(value) - 1) + "…"
    )
    # A parrot is two columns wide: both columns are cut alike.
    assert 80 - 2 <= len(row) + len(why) <= 80 and abs(len(value) - 2 * len(why)) <= 2
    output.table(["check", "found"], [("flows", "x" * 99)])
    assert capsys.readouterr().out.splitlines()[1] == "flows  " + "x" * 99


def test_a_failing_reply_knows_the_id_of_an_event_given_as_text(here):
    ran = pfl("invoke", "--event", '{"id": "abc", "step": "zz"}', "--json")
    assert (ran.code, ran.data["id"]) == (2, "abc")
    assert pfl("invoke", "--id", "abc", "--flow", "").code == 2


NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
WRONG = {"PFL_SERVER_IDLE_S": "x"}
NO_REGION = {"AWS_EC2_METADATA_DISABLED": "true"}
_new = count(1)
# How each command is run in a project with some history: its arguments, exit code and variables.
CASES: dict[str, tuple[str, int, dict[str, str]]] = {
    "invoke": ("--id new-{new}", 0, {}),
    "plan": ("--id abc", 0, {}),
    "deploy": ("--dry-run", 2, NO_REGION),
    "remove": ("--yes", 2, NO_REGION),
    "status": ("", 2, NO_REGION),
    "logs": ("", 2, NO_REGION),
    "bench": ("--no-such-option", 2, {}),
    "doctor": ("--fast", 0, {}),
    "cache ls": ("", 0, {}),
    "cache inspect": ("--id abc", 0, {}),
    "cache why": ("--id abc", 0, {}),
    "cache accept": ("--step a --dry-run", 0, {}),
    "cache bust": ("--id abc --dry-run", 0, {}),
    "cache restore": ("--dry-run", 0, {}),
    "cache verify": ("", 0, {}),
    "cache stats": ("", 0, {}),
    "config show": ("", 0, {}),
    "history ls": ("", 0, {}),
    "history show": ("{record}", 0, {}),
    "history diff": ("--id abc", 1, {}),
    "history bisect": ("--id abc --step a", 0, {}),
    "history export": ("", 0, {}),
    "history prune": ("--older-than 0s --dry-run", 0, {}),
    "limits ls": ("", 0, {}),
    "limits set": ("--step a 2 --dry-run", 0, {}),
    "limits rm": ("--step a", 5, NOWHERE),
    "limits reset": ("--step a", 5, NOWHERE),
    "runs ls": ("", 0, {}),
    "runs reap": ("", 0, {}),
    "runs open": ("00000000-0000-4000-8000-000000000000", 5, NOWHERE),
    "server start": ("", 2, WRONG),
    "server status": ("", 3, {}),
    "server stop": ("", 0, {}),
    "setup blocks": ("", 2, WRONG),
    "setup deployments": ("", 2, WRONG),
    "setup automations": ("", 2, WRONG),
    "setup all": ("", 2, WRONG),
    "setup rm": ("", 2, WRONG),
    "worker start": ("--once", 2, WRONG),
}
# Commands that have nothing to list there, and so print nothing on stdout.
NO_ROWS = ("cache verify", "limits ls", "runs ls", "runs reap")
NO_TEXT = (*NO_ROWS, "cache accept", "cache restore", "server stop")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a project where step a was edited between two calls, and a record of it."""
    root = tmp_path_factory.mktemp("filled")
    project = Project(root)
    project.ship()
    environ = {"PFL_PROJECT": str(root), "HOME": str(root)}
    assert pfl("invoke", "--id", "abc", **environ).code == 0
    source = root / "flows" / "a.py"
    source.write_text(source.read_text().replace("1234", "1235"))
    assert pfl("invoke", "--id", "abc", **environ).code == 0
    record = pfl("history", "ls", "--json", **environ).rows[0]["short"]
    yield {**environ, "record": record}
    assert not (root / ".pfl" / "server.lock").exists(), (
        "a command that only reads started a server"
    )


def _case(name: str, filled: dict[str, str]) -> tuple[list[str], int, dict[str, str]]:
    text, code, environ = CASES[name]
    words = text.format(new=next(_new), record=filled["record"]).split()
    named = {key: value for key, value in filled.items() if key != "record"}
    return [*name.split(), *words], code, {**named, **environ}


def _takes_json(name: str) -> bool:
    return any("--json" in param.opts for param in COMMANDS[tuple(name.split())].params)


def test_every_command_is_run_on_pipes_and_terminals():
    assert {" ".join(path) for path in COMMANDS} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_on_a_pipe_stdout_is_the_data_while_stderr_is_a_terminal(name, filled):
    arguments, code, environ = _case(name, filled)
    if _takes_json(name):
        arguments.append("--json")
    ran = pfl_on("err", *arguments, **environ)
    assert ran.code == code, ran.err
    if _takes_json(name):
        assert all(isinstance(row, dict) for row in ran.rows)
    assert bool(ran.out) == (name not in NO_ROWS)
    assert "\x1b" not in ran.out and '{"' not in ran.err


@pytest.mark.parametrize("name", CASES)
def test_on_a_terminal_stdout_is_the_data_while_stderr_is_a_pipe(name, filled):
    arguments, code, environ = _case(name, filled)
    ran = pfl_on("out", *arguments, **environ)
    assert ran.code == code, ran.err
    assert bool(ran.out) == (code in (0, 1) and name not in NO_TEXT)
    assert "\x1b" not in ran.err and bool(ran.err) >= (code not in (0, 1))


def test_a_step_that_fails_on_a_terminal_leaves_its_reply_on_stdout(here):
    here.write("""
        @step
        def bad(id: str):
            print("from the step")
            raise ValueError("not today")

        FLOWS = [flow("bad", bad)]
    """)
    ran = pfl_on("err", "invoke", "--id", "abc", "--json")
    assert (ran.code, ran.data["error"]["why"]) == (4, "ValueError: not today")
    assert "from the step" in ran.err and "from the step" not in ran.out


def test_verify_prints_its_findings_on_stdout_while_it_shows_its_progress(here, monkeypatch):
    """Its moving line comes with every 1,000 objects, and the damaged one after it."""
    store = here.root / ".pfl" / "store" / "results"
    for number in range(1_100):
        path = store / f"id-{number:04}" / "a" / "key"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"damaged")
    ran = pfl_on("err", "cache", "verify", "--json")
    assert ran.code == 6 and len(ran.rows) == 1_100
    assert "1000 checked" in ran.err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_option_given_twice_is_refused(path):
    command = typer.main.get_command(app)
    for param in COMMANDS[path].params:
        is_single = param.param_type_name == "option" and not (param.multiple or param.is_flag)
        if is_single:
            words = [param.opts[0], "1", param.opts[-1], "1"]
            with pytest.raises(typer.TyperException, match=f"{param.opts[0]} is given twice"):
                command.main([*path, *words], standalone_mode=False)


def test_an_option_given_twice_is_exit_code_2_and_a_repeatable_one_is_not(here):
    ran = pfl("cache", "ls", "--id", "a", "--id=b", "--json")
    assert (ran.code, ran.data["error"]["what"]) == (2, "--id is given twice")
    assert ran.data["error"]["hint"] == "pfl cache ls --help"
    assert pfl("invoke", "--id", "abc", "--bust", "a", "--bust", "b").code == 0
    assert pfl("cache", "ls", "--json", "--json").code == 0


@pytest.mark.parametrize("group", GROUPS)
def test_no_sentence_of_a_list_of_commands_is_cut_off(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    typer.main.get_command(app).main([*group.split(), "--help"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(" ".join(lines).split())
    assert "..." not in shown.partition("Commands:")[2] and "…" not in shown
    for path, command in COMMANDS.items():
        if len(path) == 2 and path[0] == group:
            sentence = " ".join(command.help.split()).partition(". ")[0].rstrip(".")
            assert f"{path[1]} {sentence}." in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["invoke", "--id", "abc", "--json"],
        ["invoke", "--id", "abc"],
        ["config", "show"],
        ["cache", "ls", "--nope", "--json"],
        ["history", "export"],
        ["history", "export", "--format", "csv"],
        ["--version"],
        ["--help"],
    ],
)
def test_a_full_disk_is_an_error_and_no_traceback(here, arguments):
    here.call()
    with open("/dev/full", "wb") as full:
        process = forked.Popen(
            [*PFL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=_environ({})
        )
        _, err = process.communicate(timeout=60)
    assert process.returncode == (2 if "--nope" in arguments else 5)
    assert "No space left on device" in err or "No such option" in err
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["invoke", "--id", "abc", "--flow", "bad"], 4),
        (["invoke", "--id", "abc", "--flow", "good"], 0),
        (["invoke", "--id", "abc", "--flow", "good", "--cached-only"], 3),
        (["cache", "inspect", "--id", "abc"], 3),
        (["config", "show"], 0),
        (["history", "diff", "--id", "changed"], 1),
        (["cache", "verify"], 6),
        (["limits", "rm", "--step", "good", "--yes"], 5),
    ],
)
@pytest.mark.parametrize("json", [["--json"], []])
def test_a_reader_that_is_gone_does_not_change_the_exit_code(here, arguments, code, json):
    here.write("""
        @step
        def good(id: str) -> int:
            return 1

        @step
        def bad(id: str):
            raise ValueError("not today")

        @step
        def turn(id: str, previous=None):
            return (previous or 0) + 1

        FLOWS = [flow("good", good), flow("bad", bad), flow("turn", turn)]
    """)
    for bust in (None, "all"):
        here.call("changed", flow="turn", bust=bust)
    damaged = here.root / ".pfl" / "store" / "results" / "damaged" / "good" / "key"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    done, err = _unread(*arguments, *json, **NOWHERE)
    assert done == code
    assert "Traceback" not in err and "Broken pipe" not in err


def _unread(*arguments: str, **environ: str) -> tuple[int, str]:
    """The exit code and the messages of ``pfl`` on a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    process = forked.Popen(
        [*PFL, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=_environ(environ),
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_a_command_that_repairs_does_all_of_it_without_a_reader(here):
    here.call()
    results = here.root / ".pfl" / "store" / "results"
    for number in range(3):
        path = results / f"id-{number}" / "a" / "key"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"damaged")
    code, err = _unread("cache", "verify", "--repair")
    assert code == 0 and "3 set aside" in err
    assert not [path for path in results.rglob("key") if path.read_bytes() == b"damaged"]


@pytest.mark.parametrize("arguments", [["export"], ["export", "--format", "csv"], ["ls", "--json"]])
def test_a_list_ends_quietly_without_a_reader(here, arguments):
    for number in range(30):
        here.call(f"id-{number}", step="a")
    code, err = _unread("history", *arguments)
    assert code == 0 and "record" not in err


CLOSING = {
    "with": "with open(os.devnull, 'w') as sys.stdout: print('noise')",
    "close": "sys.stdout.close()",
    "both": "sys.stdout.close(), sys.stderr.close()",
    "None": "sys.stdout = sys.stderr = None",
    "replaced": "sys.stdout = sys.stderr = io.StringIO()",
    "descriptors": "os.close(1), os.close(2)",
}


@pytest.mark.parametrize("closing", CLOSING.values(), ids=CLOSING)
@pytest.mark.parametrize("terminals", ["", "err"])
def test_a_step_that_closes_the_streams_leaves_the_reply_and_the_messages(here, closing, terminals):
    here.write(f"""
        import io, os, sys

        @step
        def quiet(id: str) -> int:
            {closing}
            return 1

        @step
        def after(quiet: int):
            raise ValueError("not today")

        FLOWS = [flow("quiet", quiet, after)]
    """)
    ran = pfl_on(terminals, "invoke", "--id", "abc", "--json")
    assert ran.code == 4
    assert [row["status"] for row in ran.data["steps"]] == ["computed", "failed"]
    assert "not today" in ran.err


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 3), ("", 1, 3), ("y", 0, 0)])
def test_a_question_looks_like_one_and_takes_no_for_an_answer(here, answer, code, left):
    pfl("invoke", "--id", "abc")
    ran = pfl_on("in err", "cache", "bust", "--id", "abc", stdin=f"{answer}\n")
    assert ran.code == code
    assert "Bust 3 results? [y/N]: " in ran.err and "error" not in ran.err
    assert ("nothing was done" in ran.err) == (code == 1)
    assert "[y/N]" not in ran.out
    assert len(pfl("cache", "ls", "--json").rows) == left


def test_without_a_terminal_a_question_is_no_error_message_and_yes_is_named(here):
    pfl("invoke", "--id", "abc")
    ran = pfl("cache", "bust", "--id", "abc")
    assert ran.code == 2
    assert "error: this needs your confirmation" in ran.err and "--yes" in ran.err
    assert len(pfl("cache", "ls", "--json").rows) == 3


@pytest.mark.parametrize(
    ("terminals", "environ", "has_colours"),
    [
        ("out err", {}, True),
        ("out err", {"NO_COLOR": "1"}, False),
        ("out err", {"TERM": "dumb"}, False),
        ("out err", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ("", {}, False),
        ("", {"FORCE_COLOR": "1"}, True),
        ("", {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        ("", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_those_that_the_environment_asks_for(here, terminals, environ, has_colours):
    ran = pfl_on(terminals, "invoke", "--id", "abc", **environ)
    wrong = pfl_on(terminals, "invoke", "--id", "", **environ)
    for text in (ran.out, wrong.err):
        assert bool(re.search(r"\x1b\[[0-9;]*m", text)) == has_colours
    if environ.get("TERM") == "dumb" and terminals:
        assert "\x1b" not in ran.out + ran.err and "a: computing" in ran.err


@pytest.mark.parametrize("terminals", ["out err", ""])
def test_what_a_step_prints_is_not_mixed_with_the_progress(here, terminals):
    here.write("""
        @step
        def talks(id: str) -> int:
            print("hi")
            return 1

        FLOWS = [flow("talks", talks)]
    """)
    ran = pfl_on(terminals, "invoke", "--id", "abc", "--engine", "direct")
    lines = re.sub(r"\x1b\[[0-9;]*m|\r(?=\n)", "", ran.err).split("\n")
    assert ran.code == 0 and "hi" in lines and "talks: computing" in lines, ran.err


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_table_that_a_narrow_terminal_cannot_hold_becomes_lines(monkeypatch, capsys, term):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("abc", "meaning", "a" * 12, "running", "2026-11-30T09:00:00+01:00", "run-1")] * 2
    output.table(["id", "flow", "step", "status", "started", "run"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert [line.split() for line in lines[:3]] == [
        ["id", "abc"],
        ["flow", "meaning"],
        ["step", "a" * 12],
    ]
    assert len(lines) == 2 * 6 + 1


def test_a_table_grows_with_its_rows(capsys):
    table = output.Table(["name", "size>"])
    for row in [("a", 1), ("longer", 1000)]:
        table.add(row)
        table.flush()
    assert capsys.readouterr().out == "name  size\na        1\nlonger  1000\n"


def test_rows_come_before_the_last_one_is_known(capsys):
    def rows() -> Iterator[dict[str, int]]:
        for number in range(150):
            yield {"number": number}
        assert "99" in capsys.readouterr().out

    assert output.print_rows(rows(), ["number"]) == 150


def test_no_text_that_was_stored_reaches_the_terminal_as_it_is(capsys, monkeypatch):
    evil = "\x1b]0;title\x07\x9b31m\u202e\r"
    output.table(["name"], [(evil,), ((evil, "http://x/" + evil),)])
    output.say(f"one {evil}\ntwo")
    output.show(f"one {evil}\ntwo")
    output.pairs({"name": evil})
    output.explain({"type": "", "what": evil, "why": evil, "hint": evil})
    output.progress("step", evil)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert not [c for c in shown if not c.isprintable() and c != "\n"]
    assert "\\u001b]0;title\\u0007" in captured.out and "one " in captured.err
    assert captured.err.count("\ntwo\n") == 1
    monkeypatch.setattr(output, "in_json", True)
    value = {"value": f"{evil}\U000e0001\ud800"}
    output.emit(value)
    shown = capsys.readouterr().out
    assert shown.removesuffix("\n").isprintable() and json.loads(shown) == value


EVIL = "\x1b]52;c;cHduZWQ=\x07\u202e"
# What decides where an object belongs, and what it is.
IDENTITY = ("id", "step", "key", "sha256", "fingerprint", "status", "digest", "kind", "at")


def _poisoned(value: object, name: str = "") -> object:
    """*value* with an escape sequence after each text in it."""
    if isinstance(value, dict):
        return {name: _poisoned(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_poisoned(each, name) for each in value]
    is_free = isinstance(value, str) and name not in IDENTITY and not name.endswith("_at")
    return value + EVIL if is_free else value


def test_no_command_lets_a_poisoned_store_steer_the_terminal(here):
    here.call()
    here.call(bust="all")
    store = here.root / ".pfl" / "store"
    for kind in ("history", "code"):
        for path in (store / kind).rglob("*.json"):
            body = records.unseal(path.read_bytes(), f"{path.relative_to(store)}")
            path.write_bytes(records.seal(_poisoned(body)))
    source = here.root / "flows" / "a.py"
    source.write_text(source.read_text().replace("1234", "1235"))
    record = pfl("history", "ls", "--json").rows[0]["short"]
    evil = 0
    for words in (
        "plan --id abc",
        "cache why --id abc --diff",
        "cache inspect --id abc",
        "cache accept --step a --dry-run",
        "cache accept --step a --yes --json",
        "cache accept --step a --undo",
        "history ls",
        f"history show {record}",
        "history diff --id abc",
        "history export",
        "history export --format=csv",
    ):
        ran = pfl(*words.split())
        shown = ran.out + ran.err
        # csv ends its lines as RFC 4180 wants.
        assert not [c for c in shown if not c.isprintable() and c not in "\r\n"], words
        evil += "cHduZWQ" in shown
    assert evil > 7


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone with an offset."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def test_times_are_local_with_their_offset_or_utc(berlin, monkeypatch):
    assert output.local_time("2026-11-30T09:08:28.123456Z") == "2026-11-30T10:08:28+01:00"
    assert output.local_time("2026-07-01T09:08:28+00:00") == "2026-07-01T11:08:28+02:00"
    assert output.local_time(None) == ""
    monkeypatch.setattr(output, "in_utc", True)
    assert output.local_time("2026-11-30T09:08:28.123456Z") == "2026-11-30T09:08:28+00:00"


def test_a_time_without_an_offset_is_local(berlin):
    at = options.moment_ns("2026-11-30T10:00", "--since")
    assert at == options.moment_ns("2026-11-30T09:00Z", "--since") == 1_796_029_200 * 10**9
    assert options.moment_ns("2026-11-30", "--since") == at - 10 * 3_600 * 10**9
    week_ns = time.time_ns() - options.moment_ns("7d", "--since")
    assert abs(week_ns - 7 * 86_400 * 10**9) < 10**9
    with pytest.raises(InvalidRequestError, match="invalid --since 'yesterday'"):
        options.moment_ns("yesterday", "--since")
    _, since = typing.get_args(options.Since)
    assert "local if it has no offset" in since.help


def test_reading_commands_start_no_server(here):
    here.results.put("limits/x.json", records.seal({"version": 1, "tag": "task-a", "limit": 2}))
    ran = pfl("limits", "ls", "--json")
    (row,) = ran.rows
    assert (row["tag"], row["limit"], row["taken"], row["holders"]) == ("task-a", 2, 0, [])
    assert "server is not running" in ran.err and "1 limit" in ran.err
    assert "0 of 2  task-a" in pfl("limits", "ls").out
    assert pfl("limits", "set", "--step", "a", "1", "--dry-run").code == 0
    assert pfl("runs", "ls").code == 0
    assert not (here.root / ".pfl" / "server.lock").exists()
