"""The flow *audit* on distributions made for the test, and on one that is really installed."""

from __future__ import annotations

import importlib
import io
import shutil
import time
import tokenize
from importlib import metadata
from pathlib import Path

import pytest

from flows.audit.collect import collect
from flows.audit.measure import ChangedError, measure
from flows.audit.report import report
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.values import encode
from pfl.handler.entry import handle

ROOT = Path(__file__).resolve().parents[1]
MODULE = """
class Oven:
    async def bake(self, loaves):
        def turn(loaf):
            return loaf
        return list(map(turn, loaves))

def main():
    oven = Oven()
    return oven, [
        1,
        2,
    ]
"""
SOURCES = {"demo/__init__.py": "", "demo/oven.py": MODULE, "demo/recipes.txt": "bread\n"}


class Site:
    """A site-packages folder with the distribution ``demo-dist``, which can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def install(
        self, sources: dict[str, str | bytes], *, version: str = "1.0", installer: str = "pip"
    ) -> None:
        """Replace what is installed, with RECORD as pip writes it."""
        shutil.rmtree(self.folder)
        info = f"demo_dist-{version}.dist-info"
        written = {
            **sources,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: demo-dist\nVersion: {version}\n",
            f"{info}/INSTALLER": installer,
        }
        for path, text in written.items():
            self.write(path, text)
        # pip also lists the bytecode, which may not exist.
        bytecode = "demo/__pycache__/__init__.cpython-311.pyc"
        listed = [*written, bytecode, f"{info}/RECORD"]
        self.write(f"{info}/RECORD", "".join(f"{path},,\n" for path in listed))
        importlib.invalidate_caches()

    def write(self, path: str, text: str | bytes) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path / "site")
    made.install(SOURCES)
    monkeypatch.syspath_prepend(str(made.folder))
    return made


@pytest.fixture
def call(tmp_path):
    """Calls the flow as Lambda would, and gives the reply and the status of each step."""
    (tmp_path / "store").mkdir()
    settings = Settings(engine="direct", project=str(ROOT), store=str(tmp_path / "store"))

    def call(id="demo-dist", **event):
        reply = handle({"id": id, "flow": "audit", **event}, settings)
        return reply, {row["step"]: row["status"] for row in reply["steps"]}

    return call


@pytest.fixture
def clock(monkeypatch):
    """Moves the time of day on by so many seconds."""
    now = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: now() + seconds)


def page(reply) -> str:
    return reply["steps"][-1]["value"]["markdown"]


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


# --- the flow


def test_a_second_call_is_answered_from_the_cache(site, call):
    first, computed = call()
    second, hit = call()
    assert set(computed.values()) == {"computed"}
    assert set(hit.values()) == {"hit"}
    assert page(first) == page(second)
    assert page(first).startswith("# demo-dist 1.0\n")
    assert "previous report" not in page(first)


def test_after_an_hour_the_same_files_are_looked_at_and_not_measured_again(site, call, clock):
    call()
    clock(3_599)
    assert call()[1] == {"collect": "hit", "measure": "hit", "report": "hit"}
    clock(3_601)
    assert call()[1] == {"collect": "computed", "measure": "hit", "report": "hit"}


def test_the_same_files_from_another_installer_are_not_measured_again(site, call, clock):
    call()
    site.install(SOURCES, installer="uv")
    clock(3_601)
    assert call()[1] == {"collect": "computed", "measure": "hit", "report": "hit"}


def test_a_new_version_is_measured_and_compared_with_the_one_before(site, call, clock):
    site.install({**SOURCES, "demo/gone.py": ""})
    call()
    site.install(
        {
            "demo/__init__.py": "",
            "demo/oven.py": MODULE + "\n\ndef new():\n    pass\n",
            "demo/late.py": "x = 1\n",
        },
        version="2.0",
    )
    clock(3_601)
    reply, statuses = call()
    assert set(statuses.values()) == {"computed"}
    assert page(reply).startswith("# demo-dist 2.0\n")
    changes = section(page(reply), "Since the previous report")
    assert "| demo/oven.py | changed |" in changes
    assert "| demo/late.py | added |" in changes
    assert "| demo/gone.py | removed |" in changes
    assert "| functions | 4 |" in page(reply)


def test_a_report_that_is_busted_compares_with_itself(site, call):
    call()
    reply, statuses = call(step="report", bust="this")
    assert statuses["report"] == "computed"
    assert "No module changed." in section(page(reply), "Since the previous report")


def test_another_length_of_the_lists_runs_the_report_alone(site, call):
    call()
    reply, statuses = call(params={"top": 1})
    assert statuses == {"collect": "hit", "measure": "hit", "report": "computed"}
    assert "| demo/oven.py | 13 |" in section(page(reply), "Longest modules")
    assert "demo/__init__.py" not in section(page(reply), "Longest modules")


def test_a_length_that_cannot_be_is_told(site, call):
    reply, _ = call(params={"top": 0})
    assert reply["status"] == "failed"
    assert "invalid top 0: it must be at least 1" in reply["error"]["why"]


def test_what_is_not_installed_fails_and_is_found_at_once_when_it_is(site, call):
    reply, statuses = call("demo-dits")
    assert reply["status"] == "failed"
    assert statuses == {"collect": "failed"}
    assert reply["error"]["type"] == "StepFailedError"
    assert "demo-dits" in reply["error"]["why"]
    shutil.rmtree(site.folder)
    importlib.invalidate_caches()
    assert call()[0]["status"] == "failed"
    site.folder.mkdir()
    site.install({"demo/__init__.py": ""})
    assert call()[0]["status"] == "completed"


def test_an_installed_package_is_counted_as_its_tokens_say(call):
    reply, _ = call("typer")
    assert reply["status"] == "completed"
    totals = reply["steps"][1]["value"]["totals"]
    modules = [path.locate() for path in metadata.files("typer") if path.suffix == ".py"]
    tokens = [
        token
        for path in modules
        for token in tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
    ]
    words = [token.string for token in tokens if token.type == tokenize.NAME]
    assert totals["modules"] == len(modules)
    assert totals["lines"] == sum(len(path.read_text().splitlines()) for path in modules)
    assert totals["functions"] == words.count("def")
    assert totals["classes"] == words.count("class")
    assert totals["unparsed"] == 0
    assert f"# typer {metadata.version('typer')}" in page(reply)


# --- its steps as ordinary functions


def test_the_modules_are_found_under_any_spelling_of_the_name(site):
    found = collect("demo-dist")
    assert (found["name"], found["version"]) == ("demo-dist", "1.0")
    assert list(found["modules"]) == ["demo/__init__.py", "demo/oven.py"]
    assert encode(found) == encode(collect("Demo_Dist"))


def test_an_edit_in_place_of_the_same_length_is_noticed(site):
    before = collect("demo-dist")["modules"]
    site.write("demo/oven.py", MODULE.replace("Oven", "Owen"))
    after = collect("demo-dist")["modules"]
    assert {name for name in before if before[name] != after[name]} == {"demo/oven.py"}


def test_lines_functions_and_classes_are_counted(site):
    measured = measure("demo-dist", collect("demo-dist"))
    assert measured["totals"] == {
        "modules": 2,
        "lines": 13,
        "functions": 3,
        "classes": 1,
        "unparsed": 0,
    }
    assert measured["lines"] == {"demo/__init__.py": 0, "demo/oven.py": 13}


def test_a_module_that_does_not_parse_is_counted_as_such(site):
    site.install(
        {
            "demo/good.py": "x = 1\n",
            "demo/old.py": "print 'hello'\n",
            "demo/binary.py": b"x\0y",
            "demo/latin.py": b"name = '\xe9'\n",
            "demo/strange.py": b"# coding: no-such-code\n",
        }
    )
    totals = measure("demo-dist", collect("demo-dist"))["totals"]
    assert (totals["modules"], totals["unparsed"]) == (5, 4)


def test_numbers_are_not_kept_under_the_digest_of_other_files(site):
    collected = collect("demo-dist")
    site.write("demo/oven.py", "x = 1\n")
    with pytest.raises(ChangedError, match="demo-dist changed after it was collected"):
        measure("demo-dist", collected)
    (site.folder / "demo/oven.py").unlink()
    with pytest.raises(ChangedError):
        measure("demo-dist", collected)


COLLECTED = {"name": "demo", "version": "1.0", "modules": {"demo/a.py": "0" * 16}}
MEASURED = {
    "totals": {"modules": 1, "lines": 1_234},
    "lines": {"demo/a.py": 20, "demo/b.py": 1_214},
}


def test_the_page_is_as_drawn():
    first = report(COLLECTED, MEASURED, None)
    assert (
        report(COLLECTED, MEASURED, first, top=1)["markdown"]
        == """\
# demo 1.0

| what | count |
| --- | --- |
| modules | 1 |
| lines | 1234 |

## Longest modules

| module | lines |
| --- | --- |
| demo/b.py | 1214 |

## Since the previous report

No module changed.
"""
    )


def test_equal_inputs_make_equal_reports():
    first = report(COLLECTED, MEASURED, None)
    assert encode(first) == encode(report(COLLECTED, MEASURED, None))
    assert encode(report(COLLECTED, MEASURED, first)) == encode(report(COLLECTED, MEASURED, first))


@pytest.mark.parametrize("previous", [{}, {"markdown": "# demo"}, {"layout": 1, "files": []}])
def test_a_previous_report_laid_out_otherwise_is_passed_over(previous):
    assert report(COLLECTED, MEASURED, previous) == report(COLLECTED, MEASURED, None)
