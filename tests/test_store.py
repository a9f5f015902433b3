"""One contract over a directory, S3 and memory; and what is broken is never taken for a miss."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl.handler.core.declare import catalog
from pfl.handler.core.errors import (
    InvalidRequestError,
    UnavailableError,
    UnstorableValueError,
)
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects, raw_listing
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


@pytest.mark.parametrize("bad", ["f//x", "f/../x", "f/./x", "f/a\x01b", "f/m//n/o"])
def test_on_s3_a_key_that_no_store_can_hold_hides_no_other(bucket, s3_client, s3_env, bad):
    store = open_store(f"s3://{bucket}/pre/fix", environ=s3_env)
    keys = [f"f/{number:04d}" for number in range(5)] + ["f/n/a b+c", "f/z%2F", "f/ü"]
    for key in keys:
        store.put(key, b"1")
    before = list(store.list("f"))
    s3_client.put_object(Bucket=bucket, Key=f"pre/fix/{bad}", Body=b"")
    assert list(store.list("f")) == before
    assert list(store.list("f", after="f/0003")) == before[4:]
    assert len(before) == len(keys)


def test_on_s3_a_listing_goes_on_behind_a_page_of_keys_that_no_store_can_hold(
    bucket, s3_client, s3_env, monkeypatch
):
    monkeypatch.setattr(raw_listing, "_PAGE", 2)
    store = open_store(f"s3://{bucket}", environ=s3_env)
    for number in range(3):
        s3_client.put_object(Bucket=bucket, Key=f"f//{number}", Body=b"")
    store.put("f/k", b"1")
    assert listed(store, "f") == ["f/k"]


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


_OUT_OF_FILES = """
import sys
from faults import broken
from pfl.handler.core.errors import PflError
from pfl.handler.core.store import objects

store = objects.open_store(sys.argv[1], environ={})
is_put = sys.argv[2] == "put"
if is_put:
    import obstore.exceptions, obstore.store
    import pfl.handler.core.retry
switch = broken.open_files(sys.argv[1])
switch(True)
try:
    store.put("f/k", b"x") if is_put else store.get("f/k")
except PflError as exc:
    switch(False)
    print(exc, exc.hint)
"""


@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_first_request_that_may_open_no_file_is_an_error_of_the_store(tmp_path, verb):
    """obstore panics on it, and importing its exceptions fails, too."""
    (tmp_path / "f").mkdir()
    run = [sys.executable, "-c", _OUT_OF_FILES, str(tmp_path), verb]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(run, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert "the store" in done.stdout and "open files: ulimit" in done.stdout


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


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(objects, "_PAUSES_S", (0.001, 0.001, 0.001))


def answering(s3_url: str, method: str, answer, times: int) -> servers.Loopback:
    """An S3 that answers the first requests of a method otherwise."""

    def answered(asked: str, path: str):
        count = sum(1 for each, _ in loopback.asked if each == asked)
        return answer if asked == method and count <= times else None

    loopback = servers.Loopback(answered, s3_url)
    return loopback


PASSING = [
    (409, "ConditionalRequestConflict"),
    (409, "OperationAborted"),
    (404, "NoSuchKey"),
    (400, "RequestTimeout"),
    (503, "SlowDown"),
    (500, "InternalError"),
]


@pytest.mark.parametrize(("status", "code"), PASSING)
@pytest.mark.parametrize("mode", ["overwrite", "create"])
def test_a_write_that_s3_did_not_decide_is_sent_again(
    brief, bucket, s3_env, s3_url, mode, status, code
):
    """S3 answers 409 to a conditional write that meets another one: it means neither yes nor no."""
    with answering(s3_url, "PUT", servers.s3_error(status, code), 2) as busy:
        store = open_store(f"s3://{bucket}/p", environ=s3_env | {"AWS_ENDPOINT_URL": busy.url})
        store.put("k", b"x", mode=mode)
    assert open_store(f"s3://{bucket}/p", environ=s3_env).get("k") == b"x"
    assert len(busy.asked) == 3


@pytest.mark.parametrize(("status", "code"), PASSING[:4])
@pytest.mark.parametrize("mode", ["overwrite", "create"])
def test_a_write_that_s3_never_decides_is_an_error_and_not_an_object_that_exists(
    brief, bucket, s3_env, s3_url, mode, status, code
):
    with answering(s3_url, "PUT", servers.s3_error(status, code), 99) as busy:
        store = open_store(f"s3://{bucket}/p", environ=s3_env | {"AWS_ENDPOINT_URL": busy.url})
        with pytest.raises(UnavailableError, match="did not write k") as caught:
            store.put("k", b"x", mode=mode)
    assert code in caught.value.why
    assert caught.value.hint
    assert [method for method, _ in busy.asked] == ["PUT"] * 4


def test_a_create_that_s3_refuses_because_the_object_exists_is_not_sent_again(
    brief, bucket, s3_env, s3_url
):
    open_store(f"s3://{bucket}/p", environ=s3_env).put("k", b"one")
    answer = servers.s3_error(412, "PreconditionFailed")
    with answering(s3_url, "PUT", answer, 99) as refusing:
        store = open_store(f"s3://{bucket}/p", environ=s3_env | {"AWS_ENDPOINT_URL": refusing.url})
        with pytest.raises(AlreadyExistsError):
            store.put("k", b"two", mode="create")
        store.put("k", b"one", mode="create")  # Our own: the first answer was lost.
    assert [method for method, _ in refusing.asked] == ["PUT", "GET"] * 2


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (405, "MethodNotAllowed")])
def test_a_service_without_conditional_writes_is_reported_as_one(s3_env, status, code):
    with servers.Loopback(lambda method, path: servers.s3_error(status, code)) as simple:
        store = open_store("s3://bucket/p", environ=s3_env | {"AWS_ENDPOINT_URL": simple.url})
        with pytest.raises(UnavailableError) as caught:
            store.put("k", b"x", mode="create")
    assert "only if it does not exist" in caught.value.hint


@pytest.mark.parametrize(("verb", "method"), [("read", "GET"), ("list", "GET"), ("delete", "POST")])
def test_a_conflict_that_passes_is_noticed_by_no_verb(brief, bucket, s3_env, s3_url, verb, method):
    open_store(f"s3://{bucket}/p", environ=s3_env).put("f/k", b"x")
    with answering(s3_url, method, servers.s3_error(409, "OperationAborted"), 2) as busy:
        store = open_store(f"s3://{bucket}/p", environ=s3_env | {"AWS_ENDPOINT_URL": busy.url})
        verbs(store)[verb]()
    assert len(busy.asked) == 3


def test_a_call_saves_everything_although_s3_first_answers_each_write_with_a_conflict(
    brief, project, bucket, s3_env, s3_url
):
    conflict = servers.s3_error(409, "ConditionalRequestConflict")

    def once(method: str, path: str):
        is_first = busy.asked.count((method, path)) == 1
        return conflict if method == "PUT" and is_first else None

    with servers.Loopback(once, s3_url) as busy:
        environ = s3_env | {"AWS_ENDPOINT_URL": busy.url}
        project.store = open_store(f"s3://{bucket}/p", environ=environ)
        reply = project.call()
    assert reply["status"] == "completed"
    written = {path.split("?")[0] for method, path in busy.asked if method == "PUT"}
    kinds = {path.split("/")[3] for path in written}
    assert kinds >= {"leases", "ids", "code", "results", "recent", "history", "plans"}
    steps = {row["step"] for row in reply["steps"]}
    store = open_store(f"s3://{bucket}/p", environ=s3_env)
    for kind in ("history", "plans", "results"):
        assert {key.split("/")[2] for key in listed(store, kind)} == steps


# What somebody else may put into a directory.


@pytest.fixture
def shared(tmp_path) -> Path:
    open_store(str(tmp_path), environ={}).put("f/a", b"x")
    return tmp_path


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, chdir(path.parent):
        listening.bind(path.name)


def put_link(path: Path) -> None:
    (path.parents[2] / "secret").write_bytes(b"secret")
    path.symlink_to(path.parents[2] / "secret")


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)


ODDITIES = [put_fifo, put_socket, put_link, put_dangling_link, put_device, put_large]


@pytest.mark.parametrize("put", ODDITIES)
def test_what_is_not_an_object_is_not_opened_and_reads_as_empty(shared, put):
    put(shared / "f" / "k")
    store = open_store(str(shared), environ={})
    assert store.get("f/k") == b""
    assert listed(store, "f") == ["f/a", "f/k"]
    store.put("f/k", b"y")
    assert store.get("f/k") == b"y"
    assert not (shared / "f" / "k").is_symlink()


@pytest.mark.parametrize("put", ODDITIES)
def test_what_is_not_an_object_is_moved_and_deleted_itself(shared, put):
    store = open_store(str(shared), environ={})
    put(shared / "f" / "k")
    store.move("f/k", "aside/f/k")
    assert (listed(store, "f"), listed(store, "aside")) == (["f/a"], ["aside/f/k"])
    store.delete(["aside/f/k"])
    assert listed(store, "aside") == []


def test_a_directory_in_the_place_of_an_object_is_replaced_if_it_is_empty(shared):
    store = open_store(str(shared), environ={})
    (shared / "f" / "k").mkdir()
    assert store.get("f/k") is None
    store.put("f/k", b"x")
    assert store.get("f/k") == b"x"
    (shared / "f" / "full").mkdir()
    store.put("f/full/x", b"x")
    with pytest.raises(UnavailableError, match="Is a directory") as caught:
        store.put("f/full", b"x")
    assert "remove this directory" in caught.value.hint
    store.move("f/full/x", "aside/f/full/x")
    store.put("f/full", b"x")


def test_a_fifo_with_a_writer_is_not_waited_for(shared):
    os.mkfifo(shared / "f" / "k")
    writer = os.open(shared / "f" / "k", os.O_RDWR)
    assert open_store(str(shared), environ={}).get("f/k") == b""
    os.close(writer)


def test_names_that_pfl_does_not_write_are_not_listed(shared):
    for name in (b"\xff", b"a\nb", b".hidden", b"\xc2\x85"):
        (Path(os.fsdecode(os.fsencode(shared / "f") + b"/" + name))).write_bytes(b"x")
    store = open_store(str(shared), environ={})
    assert listed(store, "f") == ["f/a"]


def test_folders_that_are_links_are_not_listed(shared):
    (shared / "f" / "loop").symlink_to("..")
    (shared / "f" / "etc").symlink_to("/etc")
    keys = ["f/a", "f/etc", "f/loop"]
    assert listed(open_store(str(shared), environ={}), "f") == keys


def test_folders_without_end_are_listed_to_the_depth_that_keys_have(shared):
    place = os.open(shared / "f", os.O_RDONLY)
    for _ in range(1_500):
        os.mkdir("d", dir_fd=place)
        place, left = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(left)
    os.close(place)
    assert listed(open_store(str(shared), environ={}), "f") == ["f/a"]
    subprocess.run(["rm", "-r", str(shared / "f")], check=True)


@pytest.mark.parametrize("verb", ["write", "list", "delete", "move"])
def test_a_folder_that_is_a_link_is_neither_listed_nor_written(tmp_path, verb):
    inside, outside = tmp_path / "store", tmp_path / "outside"
    for place in (inside, outside):
        place.mkdir()
    (outside / "k").write_bytes(b"theirs")
    (inside / "f").symlink_to(outside)
    store = open_store(str(inside), environ={})
    more = {
        "move": lambda: store.move("f/k", "aside/f/k"),
    }
    with pytest.raises(UnavailableError, match="cannot be used in f") as caught:
        (verbs(store) | more)[verb]()
    assert str(outside) in caught.value.why
    assert [path.name for path in outside.iterdir()] == ["k"]
    assert (outside / "k").read_bytes() == b"theirs"


def test_the_store_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = open_store(str(tmp_path / "link"), environ={})
    store.put("f/k", b"x")
    assert (store.get("f/k"), listed(store, "f")) == (b"x", ["f/k"])
    store.delete(["f/k"])
    assert listed(store, "f") == []


@pytest.mark.parametrize(
    "key", ["f/../../secret", "../secret", "f//a", "f/./a", "f/a\0", "f/a\nb", "f/\udcff"]
)
def test_a_key_that_could_leave_its_folder_is_absent_and_cannot_be_written(store, key):
    store.put("f/a", b"x")
    assert store.get(key) is None
    with pytest.raises(UnavailableError, match="the store"):
        store.put(key, b"x")


@pytest.mark.parametrize("key", ["/f/a", "f/a/", "", ".", "f/.a", "f/\x85"])
def test_a_key_that_pfl_does_not_write_is_absent(store, key):
    store.put("f/a", b"x")
    assert store.get(key) is None


@pytest.mark.parametrize(("kind", "most"), [("plans", 64 << 20), ("results", 1 << 30)])
def test_an_object_too_large_to_be_read_is_not_written(store, monkeypatch, kind, most):
    assert objects.limit_bytes(f"{kind}/abc/a/k") == objects.limit_bytes(f"aside/{kind}/k") == most
    monkeypatch.setattr(objects, "_SEALED_BYTES", 40_000)
    monkeypatch.setattr(objects, "_LIMITS", {"results": 80_000})
    store.put(f"{kind}/k", b"x" * 40_000)
    assert len(store.get(f"{kind}/k")) == 40_000
    with pytest.raises(UnstorableValueError, match="too large to store"):
        store.put(f"{kind}/k", b"x" * 80_001)
    monkeypatch.setattr(objects, "_SEALED_BYTES", 39_999)
    monkeypatch.setattr(objects, "_LIMITS", {"results": 39_999})
    assert store.get(f"{kind}/k") == b""


def test_an_object_is_moved_as_it_is(store):
    store.put("f/k", b"x")
    store.move("f/k", "aside/f/k")
    assert (store.get("f/k"), store.get("aside/f/k")) == (None, b"x")
    store.move("f/k", "aside/f/k")
    assert store.get("aside/f/k") == b"x"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_its_user_may_look_into_the_store_of_a_project(project):
    store = of(Settings(project=str(project.root)))
    store.put("k", b"x")
    assert [mode(project.root / each) for each in (".pfl", ".pfl/store")] == [0o700, 0o700]
    shutil.rmtree(project.root / ".pfl")
    store.put("k", b"x")
    assert [mode(project.root / each) for each in (".pfl", ".pfl/store")] == [0o700, 0o700]


def test_the_mode_of_a_store_that_exists_is_left(project):
    (project.root / ".pfl" / "store").mkdir(parents=True)
    (project.root / ".pfl").chmod(0o755)
    (project.root / ".pfl" / "store").chmod(0o775)
    of(Settings(project=str(project.root))).put("k", b"x")
    assert [mode(project.root / each) for each in (".pfl", ".pfl/store")] == [0o755, 0o775]


def test_only_its_user_may_look_into_a_directory_that_the_manifest_created(project):
    catalog.load(Settings(project=str(project.root)))
    assert len(list((project.root / ".pfl").glob("manifest-*.json"))) == 1
    assert mode(project.root / ".pfl") == 0o700
