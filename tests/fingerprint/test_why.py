"""Sentences about differences, made from stored parts."""

from __future__ import annotations

import pytest
from corpus import Runner, copy_all, load_cases

from pfl.handler.core.fingerprint import Part
from pfl.handler.core.fingerprint.changes import explain


def part(name="RATE", kind="constant", file="flows/helpers.py", line=12, digest="1", text="3"):
    return Part(name, kind, file, line, digest, text)


def test_a_constant_is_explained_with_both_values():
    new = part(digest="2", text="4")
    assert explain([part()], [new]) == ["`RATE` in flows/helpers.py:12: 3 → 4"]


def test_a_function_is_explained_by_name_and_place():
    old = part("clean", "function", "flows/text.py", 40, "1", "def clean():\n    return 1")
    new = part("clean", "function", "flows/text.py", 40, "2", "def clean():\n    return 2")
    assert explain([old], [new]) == ["`clean()` in flows/text.py:40 changed"]
    [said] = explain([old], [new], diff=True)
    assert said.startswith(
        "`clean()` in flows/text.py:40 changed\n--- a/flows/text.py\n+++ b/flows/text.py"
    )
    assert "-    return 1\n+    return 2" in said


def test_a_package_is_explained_by_versions():
    old, new = (
        part("numpy", "package", None, None, "1", "2.1"),
        part("numpy", "package", None, None, "2", "2.2"),
    )
    assert explain([old], [new]) == ["numpy 2.1 → 2.2"]


def test_what_comes_and_goes_is_explained():
    assert explain([], [part()]) == ["`RATE` in flows/helpers.py:12 is used now"]
    assert explain([part()], []) == ["`RATE` in flows/helpers.py:12 is no longer used"]


def test_nothing_is_said_of_what_only_moved():
    assert explain([part(line=12)], [part(line=90)]) == []
    assert explain([part(file="a.py")], [part(file="b.py")]) == []


def test_a_long_value_is_clipped_and_a_change_in_its_middle_still_explained():
    old, new = (
        part(text="'" + "a" * 300 + "'"),
        part(text="'" + "a" * 150 + "b" + "a" * 149 + "'", digest="2"),
    )
    assert explain([old], [new]) == ["`RATE` in flows/helpers.py:12 changed"]


def test_a_secret_stays_masked():
    old, new = part("API_KEY", text="***"), part("API_KEY", text="***", digest="2")
    assert explain([old], [new]) == ["`API_KEY` in flows/helpers.py:12 changed"]


def test_two_parts_of_one_name_are_distinguished_by_file():
    old = [part("RATE", file="a.py"), part("RATE#2", file="b.py", digest="5", text="5")]
    new = [part("RATE", file="b.py", digest="6", text="6"), part("RATE#2", file="a.py")]
    assert explain(old, new) == ["`RATE` in b.py:12: 5 → 6"]


SENTENCES = {
    "global_const": ["`RATE` in steps.py:1: 3 → 4"],
    "xmod_from_import": ["`clean()` in helpers.py:3 changed"],
    "import_reexport_constant": ["`RATE` in pkg/helpers.py:1: 3 → 4"],
    "closure_value": ["`make.<locals>.step:rate` in steps.py:3: 3 → 4"],
    "default_from_const": ["`RATE` in steps.py:1: 3 → 4", "`step.rate` in steps.py:3: 3 → 4"],
    "registered_by_decorator": ["`price` in steps.py:5 changed"],
    "registered_helper_of": ["`factor()` in steps.py:4 changed"],
    "registered_in_module_imported_for_effect": ["`Geo` in ext.py:5 changed"],
    "formatter_of_handler": ["`Loud.format()` in steps.py:5 changed"],
    "function_annotations_updated": ["`module-level code` in steps.py:5 changed"],
    "package_vendored": ["`f()` in vendor/lib/inner.py:1 changed"],
    "package_reinstalled_same_version": ["lib 1.0 (eac717d8252eac38) → 1.0 (d2e64e50abb4cd0d)"],
    "class_attr": ["`Cleaner.rate` in steps.py:6: 3 → 4"],
    "class_method": ["`Cleaner.clean()` in steps.py:8 changed"],
    "package_version": ["lib 1.0 → 1.1"],
    "enum_value": ["`Mode.SLOW` in steps.py:5: 2 → 3"],
    "function_rebound": [
        "`two()` in steps.py:4 is used now",
        "`one()` in steps.py:1 is no longer used",
    ],
}


@pytest.fixture(scope="module")
def cases():
    return {case.name: case for case in load_cases() if case.name in SENTENCES}


@pytest.fixture(scope="module")
def runner(tmp_path_factory, cases):
    place = tmp_path_factory.mktemp("cases")
    copy_all(list(cases.values()), place)
    with Runner(place) as runner:
        yield runner


@pytest.mark.parametrize("name", SENTENCES)
def test_a_real_change_is_explained_from_json_alone(name, cases, runner):
    found = [runner.run(cases[name], side) for side in ("before", "after")]
    old, new = ([Part.from_json(row) for row in side["parts"]] for side in found)
    assert explain(old, new) == SENTENCES[name]
