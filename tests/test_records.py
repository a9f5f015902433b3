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

from pfl.handler.core.errors import CorruptRecordError, InvalidRequestError
from pfl.handler.core.store import records

VALUE = {"rows": [1, 1.5, True, None, "é👾"], "deep": {"er": [[]]}}
SERIALIZERS = ["json", "compressed/json", "pickle", "compressed/pickle"]
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
    assert read(written, "json", "compressed/json") == [[VALUE, "2999-01-02T00:00:00Z", {}]] * 2


@pytest.mark.parametrize("name", ["pickle", "compressed/pickle"])
def test_what_prefect_pickled_is_refused_with_the_reason(written, name):
    with (
        open(written[name], "rb") as file,
        pytest.raises(InvalidRequestError, match="which pfl does not read") as caught,
    ):
        records.decode_result(file.read(), name.replace("/", "-"))
    assert caught.value.why == "anyone who can write to the store could run code here"
    assert "pfl cache bust" in caught.value.hint


@given(st.data())
def test_a_prefect_record_that_is_cut_is_damage_and_nothing_else(written, data):
    name = data.draw(st.sampled_from(["json", "compressed/json"]))
    with open(written[name], "rb") as file:
        whole = file.read()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(CorruptRecordError):
        records.decode_result(cut, name.replace("/", "-"))


@pytest.mark.parametrize(
    "about",
    [
        {"type": "compressed/json", "compressionlib": "zstd"},
        {"type": "msgpack"},
        {"type": "compressed/json"},
    ],
)
def test_a_serializer_that_is_not_known_or_not_what_it_says_is_damage(about):
    record = {"metadata": {"storage_key": "k", "serializer": about}, "result": "bm90IGx6bWE="}
    with pytest.raises(CorruptRecordError, match="cannot be decoded"):
        records.decode_result(json.dumps(record).encode(), "k")
