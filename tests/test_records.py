"""Result records of stock Prefect, with each serializer, decoded by a process without Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from pfl.handler.core.errors import (
    CorruptRecordError,
    UnstorableValueError,
)
from pfl.handler.core.store import keys, records
from pfl.handler.core.store.values import MAX_DEPTH, encode

VALUE = {"rows": [1, 1.5, True, None, "é👾"], "deep": {"er": [[]]}}
SERIALIZERS = ["json", "pickle", "compressed/pickle"]
_READ = """
import json, sys
from pfl.handler.core.store import records

for path in sys.argv[1:]:
    with open(path, "rb") as file:
        stored = records.decode_result(file.read(), path.rpartition("/")[2])
    print(json.dumps([stored.value, stored.expires_at, stored.metadata]))
loaded = {name.split(".")[0] for name in sys.modules}
assert not {"prefect", "pydantic", "boto3", "cloudpickle"} & loaded
"""


_WRITE = """
import json, sys
from datetime import UTC, datetime
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore, resolve_serializer

value = json.loads(sys.argv[2])
for name in sys.argv[3:]:
    store = ResultStore(
        result_storage=LocalFileSystem(basepath=sys.argv[1]), serializer=resolve_serializer(name)
    )
    store.write(obj=value, key=name.replace("/", "-"), expiration=datetime(2999, 1, 2, tzinfo=UTC))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, str]:
    """Files that Prefect's ResultStore wrote in a process of its own, by serializer."""
    place = tmp_path_factory.mktemp("results")
    run = [sys.executable, "-c", _WRITE, str(place), json.dumps(VALUE), *SERIALIZERS]
    done = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, "PREFECT_HOME": str(place / "home")}
    )
    assert done.returncode == 0, done.stderr
    return {name: str(place / name.replace("/", "-")) for name in SERIALIZERS}


def read(written: dict[str, str], *names: str) -> list:
    run = [sys.executable, "-c", _READ, *(written[name] for name in names)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_prefect_wrote_as_json_is_read_without_prefect(written):
    assert read(written, "json") == [[VALUE, "2999-01-02T00:00:00Z", {}]]


@pytest.mark.parametrize("name", ["pickle", "compressed/pickle"])
def test_what_prefect_pickled_is_damage_with_the_reason(written, name):
    with (
        open(written[name], "rb") as file,
        pytest.raises(CorruptRecordError, match=f"its value is a {name}, and pfl reads only JSON"),
    ):
        records.decode_result(file.read(), name.replace("/", "-"))


@given(st.data())
def test_a_prefect_record_that_is_cut_is_damage_and_nothing_else(written, data):
    with open(written["json"], "rb") as file:
        whole = file.read()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(CorruptRecordError):
        records.decode_result(cut, "json")


@pytest.mark.parametrize(
    "about",
    [
        {"type": "msgpack"},
        {"type": "compressed/json"},
    ],
)
def test_a_serializer_that_is_not_known_or_not_what_it_says_is_damage(about):
    record = {"metadata": {"storage_key": "k", "serializer": about}, "result": "bm90IGx6bWE="}
    with pytest.raises(CorruptRecordError, match="reads only JSON"):
        records.decode_result(json.dumps(record).encode(), "k")


def result(text: str, path: str = "results/abc/a/k", **metadata: object) -> bytes:
    """A result record with a right digest, whatever it holds."""
    return records.encode_result(path, text, metadata, None)


METADATA = {"id": "abc", "step": "a", "fingerprint": "f" * 64}


@pytest.mark.parametrize("text", ["1e999", "-1e999", '{"a": [1e400]}', "NaN", "-Infinity"])
def test_a_number_that_is_not_finite_is_damage(text):
    for data in (text, text.encode()):
        with pytest.raises(CorruptRecordError, match="not JSON"):
            records.loads(data, "k")
    with pytest.raises(CorruptRecordError, match="not JSON"):
        records.decode_result(result(text, **METADATA), "results/abc/a/k")


def test_a_number_with_more_digits_than_python_reads_is_damage():
    with pytest.raises(CorruptRecordError, match="not JSON"):
        records.loads("9" * 5_000, "k")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_deeper_than_a_value_that_is_stored_is_damage(opening, closing):
    text = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    assert encode(records.loads(text, "k")).replace(" ", "") == text
    assert records.loads(opening * 10 + text + closing * 10, "k")  # A plan holds a value.
    with pytest.raises(CorruptRecordError, match="nested too deeply"):
        records.loads(opening * 11 + text + closing * 11, "k")
    with pytest.raises(CorruptRecordError):
        records.loads(opening * 100_000, "k")
    with pytest.raises(UnstorableValueError, match="nested too deeply"):
        encode([records.loads(text, "k")])


def test_a_wide_value_is_not_nested_deeply():
    rows = [[number, {"a": ["[" * 600]}] for number in range(2_000)]
    assert records.loads(json.dumps(rows), "k") == rows


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": None},
        {"id": 5},
        {"step": []},
        {"after": "x"},
        {"after": [{}]},
        {"record": "../x"},
        {"record": 10**30},
    ],
)
def test_metadata_of_another_kind_is_damage(wrong):
    path = "results/abc/a/k"
    record = f"{10**19 - 1:019d}-{'a' * 16}-1234.json"
    right = METADATA | {"after": ["x"], "record": record}
    assert records.decode_result(result("1", **right), path).metadata == right
    with pytest.raises(CorruptRecordError, match=f"its {next(iter(wrong))} is"):
        records.decode_result(result("1", **right | wrong), path)


@pytest.mark.parametrize("name", ["id", "step", "fingerprint"])
def test_metadata_without_a_field_is_damage(name):
    about = {key: value for key, value in METADATA.items() if key != name}
    with pytest.raises(CorruptRecordError, match=f"it has no {name}"):
        records.decode_result(result("1", **about), "results/abc/a/k")


KINDS = {
    str: ["", "x"],
    int: [0, 5, -1, 2**53],
    float: [0, 5, 1.5, -3],
    bool: [True],
    dict: [{}],
    list: [[], [1], ["x"], [["x"]]],
    list[str]: [[], ["x"]],
    str | None: ["", "x", None],
    float | None: [5, 1.5, None],
    records.MOMENT: ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456+00:00"],
}
STRANGE = [None, True, 5, 10**30, 1e300, 1.5, "x", "", [], ["x"], [1], {}, [["x"]]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_field_holds_its_kind_and_nothing_else(kind):
    for value in KINDS[kind]:
        records.fields({"n": value}, "k", {"n": kind})
        records.fields({"n": value}, "k", {}, {"n": kind})
    records.fields({}, "k", {}, {"n": kind})
    with pytest.raises(CorruptRecordError, match="it has no n"):
        records.fields({}, "k", {"n": kind})
    allowed = [repr(value) for value in KINDS[kind]]
    for value in STRANGE:
        if repr(value) in allowed:
            continue
        with pytest.raises(CorruptRecordError, match="its n is"):
            records.fields({"n": value}, "k", {"n": kind})


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_what_is_not_an_object_has_no_fields(body):
    with pytest.raises(CorruptRecordError, match="not an object"):
        records.fields(body, "k", {})


@pytest.mark.parametrize("at", [-1e18, -1.0, 0.0, 1e12, 1e300, float(2**63)])
def test_any_number_is_a_moment(at):
    assert records.MOMENT.fullmatch(records.now_iso(at))


@given(st.text(st.characters()), st.text(st.characters()))
def test_no_stored_text_leads_out_of_its_folder(id, name):
    folder = keys.encode_id(id)
    assert keys.is_key(f"results/{folder}") or not id
    path = records.value_path(id, name)
    if keys.is_key(path):
        assert os.path.normpath(path) == path
