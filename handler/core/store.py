"""
Objects in a directory, in S3 or in memory behind one small interface: get, put, list, delete.

What obstore raises is mapped here, once: an absent object is None, and everything else is an error, so that a store that
forbids access is never taken for a miss.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from handler.core.errors import InvalidRequestError, PflError, UnavailableError

_NO_BUCKET = "<Code>NoSuchBucket</Code>"  # As S3 answers it; the bare word may stand in a key.
_BROKEN, _TRIES = "HTTP error:", 3  # A connection that broke: obstore tries most reads and writes again, not lists and deletes.


class _Lazily:
    """A module that is imported when something in it is first asked for: a hit in a directory needs no obstore."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        import importlib

        found = self.__dict__[name] = getattr(importlib.import_module(self._name), name)
        return found


obstore, exceptions = _Lazily("obstore"), _Lazily("obstore.exceptions")
_MEMORY: dict[str, object] = {}  # memory://name is one store per process, as a directory is one per machine.


class AlreadyExistsError(PflError):
    """An object that was to be created is there already."""


class Entry(NamedTuple):
    """One listed object: its key, size in bytes, and when it was last written, in seconds since 1970."""

    key: str
    size_bytes: int
    modified: float


class Store:
    """
    One object store.

    Args:
        backend: An obstore store; None for a directory.
        url: What the user calls it, for messages.
        directory: Where its objects are, if that is a directory.
        is_made: Whether the directory is made when it is not there, so that one without objects may be gone.

    ``counts`` holds how often each verb was asked of the backend: ``get``, ``put``, ``list``, ``delete``. ``is_ordered`` says
    whether a listing comes in order of key, ``format`` which version of the store's format was found in it.
    """

    format: int | None = None

    def __init__(self, backend: object, url: str, directory: str | None = None, *, is_made: bool = False) -> None:
        self._opened, self.url, self._directory, self._is_made = backend, url, directory, is_made
        self.counts: Counter[str] = Counter()
        self.is_ordered = url.startswith("s3://")

    @property
    def _backend(self) -> object:
        if self._opened is None:
            self._opened = obstore.store.LocalStore(self._directory)
        return self._opened

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        self.counts["get"] += 1
        for left in reversed(range(_TRIES)):
            try:
                if self._directory is not None:
                    return _read(f"{self._directory}/{key}")
                # Bytes arrive in a buffer of obstore's own; bytes() is the one copy.
                return bytes(obstore.get(self._backend, key).bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, exceptions.NotFoundError) as exc:
                self._check_there("read", key, exc)
                return None
            except Exception as exc:
                if not left or _BROKEN not in str(exc):
                    raise self._unavailable("read", key, exc) from exc
        raise AssertionError("unreachable")

    def put(self, key: str, data: bytes, *, mode: str = "overwrite") -> None:
        """
        Write an object whole; no reader ever sees part of it.

        Args:
            key: Where.
            data: What.
            mode: ``"overwrite"``, or ``"create"``, which leaves an object that is there alone.

        Raises:
            AlreadyExistsError: *mode* is ``"create"`` and the object is there.
            UnavailableError: The store did not take it.
        """
        self.counts["put"] += 1
        try:
            obstore.put(self._backend, key, data, mode=mode, use_multipart=False)
        except exceptions.AlreadyExistsError as exc:
            raise AlreadyExistsError(f"{key} is there already") from exc
        except Exception as exc:
            raise self._unavailable("write", key, exc) from exc

    def list(self, prefix: str, *, after: str = "") -> Iterator[Entry]:
        """
        The objects below *prefix*, a folder, one by one: in order of key on S3, in any order in a directory.

        Args:
            prefix: The folder.
            after: Only those whose key is greater.
        """
        self.counts["list"] += 1
        last, tries = "", _TRIES if self.is_ordered else 1
        while True:
            try:
                for batch in obstore.list(self._backend, prefix=prefix.rstrip("/") + "/", offset=last or after or None):
                    for meta in batch:
                        last = meta["path"]
                        yield Entry(last, meta["size"], meta["last_modified"].timestamp())
                if not last:
                    self._check_there("list", prefix, None)
                return
            except (exceptions.NotFoundError, FileNotFoundError) as exc:
                return self._check_there("list", prefix, exc)
            except PflError:
                raise
            except Exception as exc:
                tries -= 1
                if not tries or _BROKEN not in str(exc):
                    raise self._unavailable("list", prefix, exc) from exc

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand a request; one that is not there is no error."""
        rest = iter(keys)
        while some := list(islice(rest, 1_000)):
            self.counts["delete"] += 1
            for left in reversed(range(_TRIES)):
                try:
                    obstore.delete(self._backend, some)
                    break
                except (exceptions.NotFoundError, FileNotFoundError) as exc:
                    self._check_there("delete", some[0], exc)
                    self._delete_singly(some)
                    break
                except Exception as exc:
                    if not left or _BROKEN not in str(exc):
                        raise self._unavailable("delete", some[0], exc) from exc

    def _delete_singly(self, keys: list[str]) -> None:
        # A directory's batch stops at the first absent object, and the rest would stay.
        for key in keys:
            try:
                obstore.delete(self._backend, key)
            except (exceptions.NotFoundError, FileNotFoundError):
                continue
            except Exception as exc:
                raise self._unavailable("delete", key, exc) from exc

    def _check_there(self, verb: str, key: str, exc: Exception | None) -> None:
        # An object is absent only from a store that is there: not from a deleted bucket or an unmounted directory.
        if exc is not None and _NO_BUCKET in str(exc):
            raise self._unavailable(verb, key, exc) from exc
        if self._directory is not None and not self._is_made and not os.path.isdir(self._directory):
            raise self._unavailable(verb, key, NotADirectoryError(f"{self._directory} is not there any more")) from exc

    def _unavailable(self, verb: str, key: str, exc: Exception) -> UnavailableError:
        text = " ".join(str(exc).split("\n\nDebug source")[0].split())
        hint = "check the store with: pfl config show"
        if _NO_BUCKET in text:
            hint = "create the bucket, or set PFL_STORE to one that is there"
        elif isinstance(exc, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)) or any(f"status code: {status}" in text for status in (401, 403)):
            hint = "grant this identity access to the store; nothing was taken for a miss"
        elif "No space left" in text:
            hint = "free some space, or set PFL_STORE to another place"
        elif "Read-only file system" in text:
            hint = "set PFL_STORE to a place that can be written"
        return UnavailableError(f"the store {self.url} did not {verb} {key}", why=text[:500], hint=hint)


def _read(path: str) -> bytes:
    # obstore reads a file in another thread, and takes five times as long; open() asks the system six times where this asks four.
    file = os.open(path, os.O_RDONLY)
    try:
        left = os.fstat(file).st_size
        data = os.read(file, left)
        while len(data) < left and (more := os.read(file, left - len(data))):  # Linux hands out 2 GiB at a time.
            data += more
        return data
    finally:
        os.close(file)


def open_store(url: str, *, environ: Mapping[str, str], create: bool = False, credentials: object = None) -> Store:
    """
    Open the store that *url* names.

    Args:
        url: A directory, ``file://…``, ``s3://bucket/prefix`` or ``memory://name``.
        environ: Where the usual AWS variables are.
        create: Make a directory that is not there.
        credentials: An obstore credential provider, where the AWS variables alone do not do.

    Raises:
        InvalidRequestError: The URL is none of these.
        UnavailableError: The directory is not there or cannot be made.
    """
    scheme, sep, rest = url.partition("://")
    if not sep:
        scheme, rest = "file", url
    if scheme == "file" and rest:
        path = os.path.abspath(rest)
        _check_directory(path, url, create)
        return Store(None, url, path, is_made=create)
    if scheme == "memory":
        return Store(_MEMORY.setdefault(rest, obstore.store.MemoryStore()), url)
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and bucket:
        return Store(_s3(bucket, prefix.strip("/"), environ, credentials), url)
    raise InvalidRequestError(
        f"PFL_STORE names no store: {url!r}",
        why="it is neither a directory nor file://, s3://bucket/prefix or memory://",
        hint="PFL_STORE=s3://my-bucket/pfl",
    )


def _check_directory(path: str, url: str, create: bool) -> None:
    try:
        if create:
            os.makedirs(path, exist_ok=True)
        if not os.path.isdir(path):
            raise NotADirectoryError(f"{path} is no directory" if os.path.exists(path) else f"{path} is not there")
    except OSError as exc:
        raise UnavailableError(
            f"the store {url} cannot be opened", why=str(exc), hint=("" if os.path.exists(path) or create else f"mkdir -p {path}, or ") + "set PFL_STORE to another place"
        ) from exc


def _s3(bucket: str, prefix: str, environ: Mapping[str, str], credentials: object) -> object:
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    options: dict[str, object] = {}
    for option, names in {
        "access_key_id": ("AWS_ACCESS_KEY_ID",),
        "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
        "session_token": ("AWS_SESSION_TOKEN",),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    }.items():
        if value := next((environ[name] for name in names if environ.get(name)), None):
            options[option] = value
    if endpoint:
        options["endpoint"] = endpoint
    if credentials is not None:
        options = {k: v for k, v in options.items() if k in ("region", "endpoint")} | {"credential_provider": credentials}
    return obstore.store.S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": "5s", "timeout": "60s"},
        # Lambda bills the wait: five tries in some fifteen seconds, then an error that says so.
        retry_config={"max_retries": 5, "retry_timeout": _seconds(20)},
        **options,
    )


def _seconds(count: int):
    from datetime import timedelta

    return timedelta(seconds=count)


def of(settings, environ: Mapping[str, str] | None = None, *, credentials: object = None) -> Store:
    """The store that the settings name: by default the directory ``.pfl/store`` of the project, made when it is absent."""
    environ = os.environ if environ is None else environ
    if settings.store:
        return open_store(settings.store, environ=environ, credentials=credentials)
    return open_store(str(settings.home / "store"), environ=environ, create=True)
