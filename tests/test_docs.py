"""The documentation matches the program: help, messages, options, every command of the tutorial."""

from __future__ import annotations

import ast
import difflib
import re
import shlex
from pathlib import Path

import picture
import pytest
import reference
import tutorial
import typer
from conftest import ROOT, values

from pfl.cli.main import app
from pfl.handler.core.settings import SETTINGS
from pfl.handler.core.store.objects import Store

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PFL = typer.main.get_command(app)


def test_the_page_of_commands_equals_their_help_at_any_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    page = reference.PAGE.read_text(encoding="utf-8")
    assert page == reference.text(), "python docs/reference.py writes it again"


def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path, prefect_server):
    environ = {"PREFECT_API_URL": prefect_server.url}
    ran = tutorial.run(tutorial.PAGE.read_text(encoding="utf-8"), tmp_path / "pfl", environ)
    assert len(ran) > 20
    for command, *texts in ran:
        said, printed = tutorial.same(*texts)
        differs = "\n".join(
            difflib.unified_diff(
                said.splitlines(), printed.splitlines(), "page", "printed", lineterm=""
            )
        )
        assert said == printed, f"python docs/tutorial.py writes it again\n$ {command}\n{differs}"


def _templates() -> list[str]:
    """Every string in the code, with … for each placeholder."""
    found = []
    for path in (
        path for room in ("cli", "handler", "serverless") for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        each.value if isinstance(each, ast.Constant) else "…"
                        for each in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_that_is_explained_exists_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, flags=re.M)
    templates = _templates()
    assert len(messages) > 40
    for message in messages:
        parts = [part.strip() for part in message.split("…")]
        assert sum(map(len, parts)) >= 8, f"{message} could be anything"
        pattern = re.compile(".*".join(map(re.escape, parts)))
        assert any(pattern.search(text) for text in templates), message


def _commands(text: str) -> list[list[str]]:
    """The pfl commands of a page, as words: lines of its shell blocks, and text in backticks."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, flags=re.S | re.M)
    lines = [
        line.removeprefix("$ ") for block in blocks for line in block.splitlines() if "pfl " in line
    ]
    inline = re.findall(r"`(pfl [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    found: list[list[str]] = []
    for line in lines + [re.sub(r"[][\\]", "", each) for each in inline]:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        parts: list[list[str]] = [[]]
        for word in words:
            parts = (
                [*parts, []] if set(word) <= set("();<>|&") else [*parts[:-1], [*parts[-1], word]]
            )
        found += [part[1:] for part in parts if part[:1] == ["pfl"]]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_command_on_a_page_exists_with_its_options(page: Path):
    for words in _commands(page.read_text(encoding="utf-8")):
        command, rest = PFL, words
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert not (hasattr(command, "commands") and rest and rest[0][:1].isalnum()), words
        known = {name for param in command.params for name in param.opts} | {"--help", "-h"}
        assert [
            word
            for word in rest
            if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known
        ] == [], words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = page.parent / file if file else page
        assert linked.exists(), target
        headings = (
            re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.M)
            if anchor
            else []
        )
        assert not anchor or anchor in [
            re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings
        ], target


def test_a_computed_step_writes_in_the_order_that_is_drawn(project, monkeypatch):
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    machine = page.partition("## A miss as a state machine")[2].partition("RELEASE")
    before, after = machine[0].split("DECIDE"), machine[2]
    drawn = re.findall(r"create (leases|ids)", before[0]) + ["results"]
    drawn += re.findall(r"(?:create|put) (record|plan|recent)", "".join(before[1:]))
    drawn += re.findall(r"delete (leases)", after)[:1]
    kinds_of = {"record": "history", "plan": "plans"}
    written: list[str] = []
    put, delete = Store.put, Store.delete
    monkeypatch.setattr(
        Store,
        "put",
        lambda self, key, *rest, **more: (written.append(key), put(self, key, *rest, **more))[1],
    )
    monkeypatch.setattr(
        Store,
        "delete",
        lambda self, keys: delete(self, [written.append(key) or key for key in keys]),
    )
    project.call("first", step="a")  # The first call writes the format of the store.
    written.clear()
    project.knobs["inline_bytes"] = 1
    assert values(project.call(step="a")) == {"a": 1234}
    # At the end it also deletes a note that only a call has which counted as dead.
    kinds = [key.split("/")[0] for key in written if not key.startswith("calls/")]
    assert kinds.pop(2) == "values"  # A large value is stored before it is decided.
    assert kinds == [kinds_of.get(word, word) for word in drawn]


def test_the_page_of_settings_names_every_setting():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [setting.env for setting in SETTINGS.values() if f"`{setting.env}`" not in page] == []


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_fingerprint_page_counts_its_cases():
    count = len(list((ROOT / "tests" / "fingerprint" / "cases").glob("*/case.toml")))
    assert f"holds {count} changes of code" in (ROOT / "docs" / "fingerprint.md").read_text(
        encoding="utf-8"
    )


def test_the_pictures_are_those_that_are_drawn_and_fetch_nothing():
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.svg")}
    assert set(picture.PICTURES) <= set(drawn)
    for name, svg in drawn.items():
        assert not re.search(r"url\([\"']?http|@import|<script|<image", svg), name
        shown = re.sub(r"&#160;", " ", re.sub(r"&#x27;", "'", svg))
        assert all(f"$ {command}" in shown for command in picture.PICTURES.get(name, ())), name
