"""One contract over a directory, S3 and memory; and what is broken is never taken for a miss."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl.handler.core.errors import InvalidRequestError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store.keys import encode_id
from pfl.handler.core.store.objects import AlreadyExistsError, of, open_store


def listed(store, prefix: str) -> list[str]:
    return sorted(entry.key for entry in store.list(prefix))


def test_an_absent_object_is_none(store):
    assert store.get("no/such/object") is None


def test_what_was_put_is_got(store):
    store.put("a/b.json", b"\x00\xff bytes")
    assert store.get("a/b.json") == b"\x00\xff bytes"


def test_an_empty_object_is_not_an_absent_one(store):
    store.put("k", b"")
    assert store.get("k") == b""


def test_a_second_put_replaces_the_first(store):
    store.put("k", b"one, and longer")
    store.put("k", b"two")
    assert store.get("k") == b"two"


def test_a_second_create_leaves_the_first_alone(store):
    store.put("k", b"one", mode="create")
    with pytest.raises(AlreadyExistsError):
        store.put("k", b"two", mode="create")
    assert store.get("k") == b"one"


def test_a_create_does_not_overwrite_what_a_put_left(store):
    store.put("k", b"one")
    with pytest.raises(AlreadyExistsError):
        store.put("k", b"two", mode="create")
    assert store.get("k") == b"one"


def test_a_deleted_object_can_be_created_again(store):
    store.put("k", b"one", mode="create")
    store.delete(["k"])
    store.put("k", b"two", mode="create")
    assert store.get("k") == b"two"


def test_a_prefix_is_a_folder_so_abc_does_not_list_abcd(store):
    for key in ("plans/abc/a/1", "plans/abc/b/2", "plans/abcd/a/3", "plans/ab/a/4"):
        store.put(key, b"x")
    assert listed(store, "plans/abc") == ["plans/abc/a/1", "plans/abc/b/2"]
    assert listed(store, "plans/abc/") == ["plans/abc/a/1", "plans/abc/b/2"]
    assert listed(store, "plans/abc/a") == ["plans/abc/a/1"]


def test_listing_what_is_not_there_gives_nothing(store):
    store.put("plans/abc/a/1", b"x")
    assert listed(store, "plans/nobody") == []
    assert listed(store, "nowhere") == []


def test_a_listing_tells_size_and_time(store):
    store.put("f/k", b"12345")
    [entry] = store.list("f")
    assert (entry.key, entry.size_bytes) == ("f/k", 5)
    assert entry.modified > 1_700_000_000


def test_a_listing_longer_than_one_page_is_whole(store):
    keys = [f"many/{number:04}" for number in range(250)]
    for key in keys:
        store.put(key, b"")
    assert listed(store, "many") == keys


def test_deleting_many_removes_all_of_them_and_nothing_else(store):
    for number in range(12):
        store.put(f"d/{number}", b"x")
    store.put("e/0", b"x")
    store.delete(f"d/{number}" for number in range(12))
    assert listed(store, "d") == []
    assert listed(store, "e") == ["e/0"]


def test_deleting_goes_on_past_objects_that_are_not_there(store):
    store.put("d/1", b"x")
    store.put("d/3", b"x")
    store.delete(["d/0", "d/1", "nowhere/2", "d/3"])
    assert listed(store, "d") == []


def test_deleting_nothing_asks_nothing(store):
    store.delete([])
    assert store.counts["delete"] == 0


WEIRD = [
    "%2F",
    "%252e%252e",
    "%E9",
    "a b",
    "é",
    "👾",
    "مرحبا",
    "a+b",
    "a&b=c",
    "~x",
    "a=b",
    "x'y",
    "(z)",
    "a,b",
    "a;b",
    "a:b",
    "a@b",
]


@pytest.mark.parametrize("name", WEIRD)
def test_a_key_with_unusual_characters_is_listed_as_it_was_written(store, name):
    key = f"w/{name}/k"
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert listed(store, "w") == [key]
    assert listed(store, f"w/{name}") == [key]
    store.delete([key])
    assert store.get(key) is None


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    id=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60),
    data=st.binary(),
)
def test_any_ids_folder_holds_what_was_put_there(store, id, data):
    key = f"results/{encode_id(id)}/a/0"
    store.put(key, data)
    assert store.get(key) == data
    assert listed(store, f"results/{encode_id(id)}") == [key]


def test_each_verb_is_counted_as_it_is_asked(store):
    store.put("k", b"1")
    store.get("k")
    store.get("absent")
    list(store.list("f"))
    store.delete(["k", "absent"])
    assert store.counts == {"put": 1, "get": 2, "list": 1, "delete": 1}


ODD_KEY = "results/%F0%9F%91%BE a/b%2Fc/k+=é.json"


def test_on_disk_an_object_stands_at_its_literal_key(tmp_path):
    open_store(str(tmp_path), environ={}).put(ODD_KEY, b"x")
    assert (tmp_path / ODD_KEY).read_bytes() == b"x"


def test_on_disk_a_file_that_another_wrote_is_found_at_its_literal_key(tmp_path):
    path = tmp_path / ODD_KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    store = open_store(str(tmp_path), environ={})
    assert store.get(ODD_KEY) == b"x"
    assert listed(store, "results") == [ODD_KEY]


def test_on_s3_an_object_stands_at_its_literal_key_below_the_prefix(bucket, s3_client, s3_env):
    store = open_store(f"s3://{bucket}/pre/fix/", environ=s3_env)
    store.put(ODD_KEY, b"x")
    assert s3_client.get_object(Bucket=bucket, Key=f"pre/fix/{ODD_KEY}")["Body"].read() == b"x"
    s3_client.put_object(Bucket=bucket, Key="pre/fix/other/%41", Body=b"y")
    assert store.get("other/%41") == b"y"
    assert listed(store, "other") == ["other/%41"]


def test_no_reader_on_disk_sees_a_half_written_object_or_its_draft(tmp_path):
    """obstore writes a draft and renames it; a listing must not show the draft of a death."""
    store = open_store(str(tmp_path), environ={})
    store.put("f/k", b"x" * 100_000)
    (tmp_path / "f" / "k#1").write_bytes(b"half")
    assert listed(store, "f") == ["f/k"]


def test_two_openings_of_one_memory_are_one_store():
    url = f"memory://{uuid.uuid4().hex}"
    open_store(url, environ={}).put("k", b"x")
    assert open_store(url, environ={}).get("k") == b"x"
    assert open_store(url + "-other", environ={}).get("k") is None


def test_a_file_url_and_a_path_name_the_same_directory(tmp_path):
    open_store(f"file://{tmp_path}", environ={}).put("k", b"x")
    assert open_store(str(tmp_path), environ={}).get("k") == b"x"


@pytest.mark.parametrize(
    "url",
    ["gs://bucket/x", "http://host/x", "s3://", "s3:///x", "s3://b c/x", "file://", "ftp://x"],
)
def test_a_url_that_names_no_store_is_refused(url):
    with pytest.raises(InvalidRequestError, match="PFL_STORE") as caught:
        open_store(url, environ={})
    assert url in caught.value.what or "'b c'" in caught.value.why
    assert caught.value.hint


@pytest.mark.parametrize(
    ("variable", "bad"),
    [
        ("AWS_ENDPOINT_URL", "not a url"),
        ("AWS_ENDPOINT_URL", "http://[x"),
        ("AWS_ENDPOINT_URL", "ftp://x"),
        ("AWS_REGION", "no region"),
    ],
)
def test_a_variable_that_no_request_can_be_made_of_is_refused_by_its_name(s3_env, variable, bad):
    with pytest.raises(InvalidRequestError, match=variable):
        open_store("s3://bucket/x", environ=s3_env | {variable: bad})


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:4566",
        "https://s3.eu-west-1.amazonaws.com/",
        "http://[::1]:9000",
        "http://minio_1:9000/s3",
    ],
)
def test_an_endpoint_in_any_usual_form_is_taken(s3_env, endpoint):
    open_store("s3://my.bucket_x/x", environ=s3_env | {"AWS_ENDPOINT_URL": endpoint})


def test_a_directory_that_is_not_there_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(UnavailableError, match="does not exist") as caught:
        open_store(str(tmp_path / "gone"), environ={})
    assert str(tmp_path / "gone") in caught.value.hint
    assert not (tmp_path / "gone").exists()


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match="is not a directory"):
        open_store(str(tmp_path / "file"), environ={})


def test_the_store_of_a_project_is_made_when_it_is_first_used(project):
    store = of(Settings(project=str(project.root)))
    store.put("k", b"x")
    assert (project.root / ".pfl" / "store" / "k").read_bytes() == b"x"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's rights for a moment, since root may do anything; others have none to drop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A directory that anyone can come to: pytest's own are closed to others."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    for path in [place, *place.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(place)


def test_a_directory_that_may_not_be_read_is_no_miss(guarded):
    store = open_store(str(guarded), environ={})
    store.put("f/k", b"x")
    (guarded / "f").chmod(0)
    with as_nobody():
        with pytest.raises(UnavailableError, match="did not read f/k"):
            store.get("f/k")
        with pytest.raises(UnavailableError, match="did not list f"):
            list(store.list("f"))
    assert store.get("f/k") == b"x"


def test_an_object_that_may_not_be_read_is_no_miss(guarded):
    store = open_store(str(guarded), environ={})
    store.put("k", b"x")
    (guarded / "k").chmod(0)
    with as_nobody(), pytest.raises(UnavailableError, match="did not read k"):
        store.get("k")


@pytest.mark.parametrize("mode", ["overwrite", "create"])
def test_a_read_only_directory_takes_no_object_and_says_so(guarded, mode):
    store = open_store(str(guarded), environ={})
    guarded.chmod(0o555)
    with as_nobody(), pytest.raises(UnavailableError, match="did not write"):
        store.put("f/k", b"x", mode=mode)
    assert listed(store, "f") == []


def test_a_directory_that_may_not_lose_an_object_says_so(guarded):
    store = open_store(str(guarded), environ={})
    store.put("f/k", b"x")
    (guarded / "f").chmod(0o555)
    with as_nobody(), pytest.raises(UnavailableError, match="did not delete"):
        store.delete(["f/k"])
    assert store.get("f/k") == b"x"


def test_a_store_whose_directory_has_gone_is_an_error_and_not_empty(tmp_path):
    """A share that was unmounted would otherwise look like a cache with nothing in it."""
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"), environ={})
    store.put("f/k", b"x")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UnavailableError, match="does not exist any more"):
        store.get("f/k")
    with pytest.raises(UnavailableError, match="does not exist any more"):
        list(store.list("f"))


def test_the_embedded_store_may_be_deleted_and_is_empty_then(project):
    store = of(Settings(project=str(project.root)))
    store.put("f/k", b"x")
    shutil.rmtree(project.root / ".pfl")
    assert store.get("f/k") is None
    assert listed(store, "f") == []
    store.put("f/k", b"y")
    assert store.get("f/k") == b"y"


def test_an_absent_object_named_like_an_s3_error_is_just_absent(store):
    assert store.get("results/NoSuchBucket/a/k") is None
    store.delete(["results/NoSuchBucket/a/k"])


def verbs(store) -> dict:
    return {
        "read": lambda: store.get("f/k"),
        "write": lambda: store.put("f/k", b"x"),
        "list": lambda: list(store.list("f")),
        "delete": lambda: store.delete(["f/k"]),
    }


@pytest.mark.parametrize("verb", ["read", "write", "list", "delete"])
def test_a_bucket_that_is_not_there_is_no_miss(verb, s3_env):
    store = open_store("s3://no-such-bucket-here", environ=s3_env)
    with pytest.raises(UnavailableError, match="NoSuchBucket") as caught:
        verbs(store)[verb]()
    assert "create the bucket" in caught.value.hint
    assert verb in caught.value.what


@pytest.mark.parametrize("verb", ["read", "write", "list", "delete"])
def test_a_bucket_that_forbids_access_is_no_miss(verb, s3_env):
    with servers.Loopback(lambda method, path: servers.s3_error(403, "AccessDenied")) as forbidding:
        store = open_store("s3://bucket/p", environ=s3_env | {"AWS_ENDPOINT_URL": forbidding.url})
        with pytest.raises(UnavailableError) as caught:
            verbs(store)[verb]()
    assert "grant this identity access" in caught.value.hint
    assert caught.value.exit_code == 5


def test_a_bucket_that_answers_500_is_tried_again_and_then_an_error(s3_env):
    with servers.Loopback(lambda method, path: servers.s3_error(500, "InternalError")) as broken:
        store = open_store("s3://bucket/p", environ=s3_env | {"AWS_ENDPOINT_URL": broken.url})
        with pytest.raises(UnavailableError, match="did not read"):
            store.get("k")
    assert len(broken.asked) > 1


def test_a_bucket_that_answers_500_once_is_read_after_all(bucket, s3_env, s3_url):
    open_store(f"s3://{bucket}", environ=s3_env).put("k", b"x")
    with servers.Loopback(
        lambda m, p: None if len(flaky.asked) > 1 else servers.s3_error(500, "InternalError"),
        s3_url,
    ) as flaky:
        store = open_store(f"s3://{bucket}", environ=s3_env | {"AWS_ENDPOINT_URL": flaky.url})
        assert store.get("k") == b"x"
    assert len(flaky.asked) == 2


def test_many_objects_are_deleted_by_one_request(bucket, s3_env, s3_url):
    for number in range(30):
        open_store(f"s3://{bucket}", environ=s3_env).put(f"d/{number}", b"x")
    with servers.Loopback(lambda method, path: None, s3_url) as between:
        store = open_store(f"s3://{bucket}", environ=s3_env | {"AWS_ENDPOINT_URL": between.url})
        store.delete(entry.key for entry in list(store.list("d")))
        assert [method for method, _ in between.asked] == ["GET", "POST"]
        assert listed(store, "d") == []
