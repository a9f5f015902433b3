"""The flow *audit* on distributions made for the test, and on one that is really installed."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import shutil
import time
import tokenize
from importlib import metadata
from pathlib import Path

import pytest

from flows.audit.collect import NotInstalledError, collect
from flows.audit.measure import ChangedError, count, measure
from flows.audit.report import report
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.values import encode
from pfl.handler.entry import handle

ROOT = Path(__file__).resolve().parents[1]
MODULE = """
import os.path, yaml
from . import near
from rich.table import Table

class Oven:
    async def bake(self, loaves):
        def turn(loaf):
            return loaf and loaf.hot and loaf or None
        return [turn(loaf) for loaf in loaves if loaf]

def main():
    while True:
        try:
            if os: break
            elif yaml: continue
        except OSError:
            pass
    match main:
        case None: return 1 if Table else 2
"""


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
            f"{info}/direct_url.json": json.dumps(
                {"url": "https://example.org/demo.whl", "installer": installer}
            ),
            "../bin/demo": f"#!{self.folder}/python\n",
        }
        rows = [f"{path},{_record(self.write(path, text))}" for path, text in written.items()]
        self.write("demo/__pycache__/__init__.cpython-311.pyc", installer)
        self.write(
            f"{info}/RECORD",
            "\n".join(
                [*rows, "demo/__pycache__/__init__.cpython-311.pyc,,", f"{info}/RECORD,,", ""]
            ),
        )
        importlib.invalidate_caches()

    def write(self, path: str, text: str | bytes) -> bytes:
        data = text if isinstance(text, bytes) else text.encode()
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return data


def _record(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest},{len(data)}"


@pytest.fixture
def site(tmp_path, monkeypatch):
    made = Site(tmp_path / "site")
    made.install({"demo/__init__.py": "", "demo/oven.py": MODULE, "demo/recipes.txt": "bread\n"})
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
    sources = {"demo/__init__.py": "", "demo/oven.py": MODULE, "demo/recipes.txt": "bread\n"}
    call()
    site.install(sources, installer="uv")
    clock(3_601)
    assert call()[1] == {"collect": "computed", "measure": "hit", "report": "hit"}


def test_a_new_version_is_measured_and_compared_with_the_one_before(site, call, clock):
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
    changes = section(page(reply), "Since the previous report, of 1.0")
    assert "Files: 1 added, 1 removed, 2 changed." in changes
    assert "| `demo/oven.py`                 | changed |    +4 |" in changes
    assert "| `demo/late.py`                 | added   |    +1 |" in changes
    assert "| `demo/recipes.txt`             | removed |       |" in changes
    assert "`demo_dist.dist-info/METADATA`" in changes
    assert "| functions |      3 |   4 |     +1 |" in page(reply)


def test_a_report_that_is_busted_compares_with_itself(site, call):
    call()
    reply, statuses = call(step="report", bust="this")
    assert statuses["report"] == "computed"
    assert "No file changed." in section(page(reply), "Since the previous report")


def test_another_length_of_the_lists_runs_the_report_alone(site, call):
    call()
    reply, statuses = call(params={"top": 1})
    assert statuses == {"collect": "hit", "measure": "hit", "report": "computed"}
    assert section(page(reply), "Longest functions").count("demo/oven.py") == 1


@pytest.mark.parametrize("top", [0, 101])
def test_a_length_that_cannot_be_is_told(site, call, top):
    reply, _ = call(params={"top": top})
    assert reply["status"] == "failed"
    assert f"invalid top {top}: it must be 1 to 100" in reply["error"]["why"]


def test_what_is_not_installed_fails_and_close_names_are_told(site, call):
    reply, statuses = call("demo-dits")
    assert reply["status"] == "failed"
    assert statuses == {"collect": "failed"}
    assert reply["error"]["type"] == "StepFailedError"
    assert (
        "no distribution 'demo-dits' is installed here; did you mean demo-dist?"
        in reply["error"]["why"]
    )


def test_what_is_installed_later_is_found_at_once(site, call):
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
    assert f"# typer {metadata.version('typer')}" in page(reply)


# --- collect


def test_what_differs_between_two_installs_is_left_out(site):
    found = collect("demo-dist")
    assert (found["name"], found["version"]) == ("demo-dist", "1.0")
    assert list(found["files"]) == [
        "demo/__init__.py",
        "demo/oven.py",
        "demo/recipes.txt",
        "demo_dist-1.0.dist-info/METADATA",
    ]
    assert encode(found)


def test_any_spelling_of_the_name_finds_it(site):
    assert collect("Demo_Dist") == collect("demo-dist")


def test_the_digest_in_record_is_that_of_the_bytes(site):
    before = collect("demo-dist")
    (site.folder / "demo_dist-1.0.dist-info" / "RECORD").write_text(
        "".join(f"{path},,\n" for path in before["files"])
    )
    assert collect("demo-dist") == before


@pytest.mark.parametrize("path", ["demo/oven.py", "demo/recipes.txt"])
def test_an_edit_in_place_is_noticed_although_record_does_not_know(site, path):
    before = collect("demo-dist")["files"]
    site.write(path, (site.folder / path).read_bytes() + b"# more\n")
    after = collect("demo-dist")["files"]
    assert {name for name in before if before[name] != after[name]} == {path}


def test_a_module_edited_to_the_same_length_is_noticed(site):
    before = collect("demo-dist")["files"]["demo/oven.py"]
    site.write("demo/oven.py", MODULE.replace("Oven", "Owen"))
    after = collect("demo-dist")["files"]["demo/oven.py"]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_an_editable_install_is_read_where_its_sources_are(tmp_path, monkeypatch):
    site, source = Site(tmp_path / "site"), Site(tmp_path / "checkout" / "src")
    site.install({"__editable__.demo_dist.pth": str(source.folder)})
    site.write(
        "demo_dist-1.0.dist-info/direct_url.json",
        json.dumps({"url": "file:///x", "dir_info": {"editable": True}}),
    )
    source.write("demo_dist/__init__.py", MODULE)
    source.write("demo_dist/.hidden/no.py", "")
    source.write("demo_dist/__pycache__/no.cpython-311.pyc", "")
    source.write("../tests/no.py", "")
    for each in (site, source):
        monkeypatch.syspath_prepend(str(each.folder))
    assert list(collect("demo-dist")["files"]) == ["demo_dist/__init__.py"]
    assert measure("demo-dist", collect("demo-dist"))["totals"]["modules"] == 1


def test_an_egg_is_read_by_its_top_level_names(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    site.write(
        "Demo_Dist.egg-info/PKG-INFO", "Metadata-Version: 1.0\nName: Demo-Dist\nVersion: 3\n"
    )
    site.write("Demo_Dist.egg-info/top_level.txt", "oven\nbread\n")
    site.write("oven.py", MODULE)
    site.write("bread/__init__.py", "")
    site.write("other.py", "")
    monkeypatch.syspath_prepend(str(site.folder))
    assert list(collect("demo-dist")["files"]) == ["bread/__init__.py", "oven.py"]


def test_a_distribution_without_its_files_is_not_an_empty_one(site):
    shutil.rmtree(site.folder / "demo")
    (site.folder / "demo_dist-1.0.dist-info" / "RECORD").write_text("demo/oven.py,,\n")
    with pytest.raises(NotInstalledError, match="its files do not exist"):
        collect("demo-dist")


def test_the_name_of_a_module_leads_to_its_distribution(site):
    with pytest.raises(NotInstalledError, match="did you mean demo-dist"):
        collect("demo")


# --- measure


def test_a_module_is_counted():
    numbers, functions = count(MODULE.encode())
    assert numbers == {
        "lines": 20,
        "functions": 3,
        "classes": 1,
        "branches": 3
        + 2
        + 1
        + 2
        + 1
        + 1
        + 1,  # and/or, comprehension and its if, while, if and elif, except, case, ternary
        "longest": {"name": "main", "lines": 9},
        "imports": ["os", "rich", "yaml"],
    }
    assert sorted(functions) == [(2, "Oven.bake.turn"), (4, "Oven.bake"), (9, "main")]


@pytest.mark.parametrize(
    ("source", "lines"),
    [(b"", 0), (b"x", 1), (b"x\n", 1), (b"\n\n", 2), (b"\xef\xbb\xbfx = 1\r\n", 1)],
)
def test_lines_are_those_an_editor_shows(source, lines):
    assert count(source)[0]["lines"] == lines


def test_a_module_that_does_not_parse_is_listed_with_its_reason(site):
    site.install(
        {
            "demo/good.py": "pattern = '\\d'\n",  # Warns, and warnings are errors here.
            "demo/old.py": "print 'hello'\n",
            "demo/binary.py": b"x\0y",
            "demo/latin.py": b"name = '\xe9'\n",
            "demo/coded.py": b"# coding: latin-1\nname = '\xe9'\n",
            "demo/strange.py": b"# coding: no-such-code\n",
            "demo/deep.py": "(" * 5_000 + ")" * 5_000,
        }
    )
    measured = measure("demo-dist", collect("demo-dist"))
    assert set(measured["modules"]) == {"demo/good.py", "demo/coded.py"}
    assert set(measured["unparsed"]) == {
        "demo/old.py",
        "demo/binary.py",
        "demo/latin.py",
        "demo/strange.py",
        "demo/deep.py",
    }
    assert "Missing parentheses" in measured["unparsed"]["demo/old.py"]
    assert measured["unparsed"]["demo/old.py"].endswith("(line 1)")
    assert all(measured["unparsed"].values())
    assert measured["totals"]["modules"] == 2


def test_numbers_are_not_kept_under_the_digest_of_other_files(site):
    collected = collect("demo-dist")
    site.write("demo/oven.py", "x = 1\n")
    with pytest.raises(ChangedError, match=r"demo/oven\.py changed after it was collected"):
        measure("demo-dist", collected)
    (site.folder / "demo/oven.py").unlink()
    with pytest.raises(ChangedError):
        measure("demo-dist", collected)


# --- report


def made(version="1.0", **more):
    collected = {
        "name": "demo",
        "version": version,
        "python": "3.12",
        "files": {"demo/a.py": [1_200, "0" * 16]},
    }
    module = {
        "lines": 1_234,
        "functions": 2,
        "classes": 0,
        "branches": 7,
        "longest": {"name": "f", "lines": 20},
        "imports": [],
    }
    totals = {"modules": 1, "lines": 1_234, "functions": 2, "classes": 0, "branches": 7}
    longest = [
        {"name": "f", "module": "demo/a.py", "lines": 20},
        {"name": "g|h", "module": "d" * 80 + ".py", "lines": 3},
    ]
    measured = {
        "modules": {"demo/a.py": module},
        "totals": totals,
        "longest": longest,
        "imports": {},
        "unparsed": {},
    }
    return collected, measured | more


def test_the_page_is_as_drawn():
    imports = {"os": 3, "demo": 2, "yaml": 1, "rich": 1, "attr": 2}
    text = report(
        *made(imports=imports, unparsed={"demo/b.py": "odd | strange\nline"}), None, top=2
    )["markdown"]
    assert (
        text
        == f"""\
# demo 1.0

|           | count |
| --------- | ----: |
| files     |     1 |
| bytes     | 1,200 |
| modules   |     1 |
| lines     | 1,234 |
| functions |     2 |
| classes   |     0 |
| branches  |     7 |

## Longest functions

| function | module                                                              | lines |
| -------- | ------------------------------------------------------------------- | ----: |
| `f`      | `demo/a.py`                                                         |    20 |
| `g\\|h`   | `{"d" * 21}…{"d" * 40}.py` |     3 |

## Imports from elsewhere

| package | modules |
| ------- | ------: |
| `attr`  |       2 |
| `rich`  |       1 |

… and 1 more.

## Not parsed by Python 3.12

| module      | why                 |
| ----------- | ------------------- |
| `demo/b.py` | odd \\| strange line |
"""
    )


def test_equal_inputs_make_equal_reports():
    first = report(*made(), None)
    assert encode(first) == encode(report(*made(), None))
    assert encode(report(*made(), first)) == encode(report(*made(), first))


@pytest.mark.parametrize("previous", [{}, {"markdown": "# demo"}, {"layout": 0, "files": []}])
def test_a_previous_report_laid_out_otherwise_is_passed_over(previous):
    assert report(*made(), previous) == report(*made(), None)


def test_a_version_without_a_changed_file_says_both():
    text = report(*made("1.1"), report(*made("1.0"), None))["markdown"]
    assert "## Since the previous report, of 1.0\n\nNo file changed." in text
    assert "| before |" not in text
