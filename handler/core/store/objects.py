"""
Objects in a directory, in S3 or in memory, behind one small interface: get, put, list, delete.

The exceptions of obstore are converted here and nowhere else: an absent object is None, and
everything else is an error, so a store that forbids access is never taken for a miss. obstore is
imported on first use, since a hit in a directory needs none.

Others may be able to write to the store. In a directory, only regular files with printable names
are objects; links are never followed, except by the store's own path.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import islice, starmap
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

from ..errors import (
    InvalidRequestError,
    PflError,
    UnavailableError,
    UnstorableValueError,
)
from ..settings import Settings
from .keys import is_key

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import MemoryStore, ObjectStore, S3Config, S3Store

# As an element of S3's answer, since the bare word can be part of a key.
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
# What the message of the system or of S3 contains, and the hint for it; the first match counts.
# Source: Amazon S3 API Reference, "Error responses".
_HINTS = (
    (_NO_BUCKET, "create the bucket, or set PFL_STORE to an existing one"),
    ("ExpiredToken|TokenRefreshRequired", "the AWS credentials have expired: run aws sso login"),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken",
        "check the AWS credentials: aws sts get-caller-identity",
    ),
    (
        "redirect without LOCATION|AuthorizationHeaderMalformed",
        "the bucket is in another region: set AWS_REGION to it",
    ),
    ("RequestTimeTooSkewed", "set this machine's clock"),
    (
        "status code: 40[13]|Permission denied",
        "grant this identity access to the store; pfl did not count it as a miss",
    ),
    ("No space left", "free some space, or set PFL_STORE to another location"),
    ("Is a directory", "remove this directory, which is in the place of an object"),
    ("Read-only file system", "set PFL_STORE to a writable location"),
    ("(?i)too ?many ?open ?files", "raise the limit on open files: ulimit -n 4096"),
    ("error sending request", "check AWS_ENDPOINT_URL, AWS_REGION and the network"),
    ("status code: 409", "another request kept changing this object: call again"),
    (
        "status code: (405|501)",
        "use a service that can create an object only if it does not exist, such as S3 or MinIO",
    ),
    ("", "check the store with: pfl config show"),
)
# The largest objects that are written, and read into memory: values, and all others.
_LIMITS = {"results": 1 << 30, "values": 1 << 30}
_SEALED_BYTES = 64 << 20
# The most folders in a key, including ``aside``.
_MAX_DEPTH = 4
_CHUNK_BYTES = 32_768  # Most plans are shorter, so one call reads them.
# Links are not followed, and a FIFO does not block; Windows has neither flag. These are the errors
# for a link, for a socket, and for a FIFO that somebody writes to.
_ODD = (errno.ELOOP, errno.ENXIO, errno.EAGAIN)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
# S3 did not decide whether the object exists: it was being written or deleted at that moment.
_CONFLICT = "status code: 409|(?s:performing PUT.*<Code>NoSuchKey</Code>)"
# What may pass: a conflict, a slow upload, or a connection that broke. obstore itself retries
# status 5xx and 429, and broken connections unless the request creates or deletes.
# Source: Amazon S3 API Reference, "PutObject" and "Error responses".
_PASSING = re.compile(f"{_CONFLICT}|<Code>RequestTimeout</Code>|HTTP error:")
_PAUSES_S = (0.05, 0.2, 0.8)
_PAGE = 1_000  # S3 lists and deletes this many objects per request.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

# What each variable that obstore takes may be: it would panic, and end the process.
_HOST = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)"
_ENDPOINT = rf"https?://{_HOST}(:[0-9]{{1,5}})?(/[A-Za-z0-9._/-]*)?"
_REGION = "[a-z0-9-]+"
_S3_VARIABLES = {
    "AWS_ACCESS_KEY_ID": ".+",
    "AWS_SECRET_ACCESS_KEY": ".+",
    "AWS_SESSION_TOKEN": ".+",
    "AWS_REGION": _REGION,
    "AWS_DEFAULT_REGION": _REGION,
    "AWS_ENDPOINT_URL_S3": _ENDPOINT,
    "AWS_ENDPOINT_URL": _ENDPOINT,
}

T = TypeVar("T")
# memory://name is one store per process, as a directory is one per machine.
_memory: dict[str, MemoryStore] = {}


class AlreadyExistsError(PflError):
    """An object cannot be created, because it exists already."""


class ObjectInfo(NamedTuple):
    """One listed object: key, size in bytes, and last write, in seconds since 1970."""

    key: str
    size_bytes: int
    modified: float


class Store:
    """
    One object store.

    Args:
        backend: An obstore store; None for a directory.
        url: The user's name for it, for messages.
        directory: The directory that holds its objects, if it is one.
        may_vanish: Whether a missing directory is an empty store, since pfl creates it.

    Attributes:
        counts: Number of requests to the backend by verb: ``get``, ``put``, ``list``, ``delete``.
        is_local: Whether it is a directory, where threads cost more than they save.
        format: The version of the store's format, once it has been read.
    """

    format: int | None = None

    def __init__(
        self,
        backend: ObjectStore | None,
        url: str,
        directory: str | None = None,
        *,
        may_vanish: bool = False,
    ) -> None:
        self.url = url
        self._opened = backend
        self._directory = directory
        self._may_vanish = may_vanish
        self.counts: Counter[str] = Counter()
        self.is_local = directory is not None

    @property
    def _backend(self) -> ObjectStore:
        if self._opened is None:
            import obstore.store

            self._opened = obstore.store.LocalStore(self._directory)
        return self._opened

    def get(self, key: str) -> bytes | None:
        """
        The object's bytes, or None if it does not exist.

        What pfl cannot have written, such as a FIFO, a link, or an object above its limit, is never
        opened and reads as empty, so that each reader reports it as damaged.
        """
        self.counts["get"] += 1
        if not is_key(key):
            return None
        if self._directory is not None:
            try:
                return _read(self._directory, key)
            except OSError as exc:
                if exc.errno in _ODD:
                    return b""
                self._failed("read", key, exc)
                return None
        import obstore

        def read() -> bytes:
            found = obstore.get(self._backend, key)
            # Bytes arrive in a buffer of obstore's own; bytes() is the one copy.
            return bytes(found.bytes()) if found.meta["size"] <= limit_bytes(key) else b""

        return self._request("read", key, read)

    def info(self, key: str) -> ObjectInfo | None:
        """What a listing has about an object, or None if it does not exist."""
        import obstore

        self.counts["get"] += 1
        meta = self._request("read", key, partial(obstore.head, self._backend, key))
        return meta and ObjectInfo(key, meta["size"], meta["last_modified"].timestamp())

    def put(
        self, key: str, data: bytes, *, mode: Literal["overwrite", "create"] = "overwrite"
    ) -> None:
        """
        Write an object as a whole; no reader ever sees part of it.

        Args:
            key: The object's key.
            data: Its content.
            mode: ``"create"`` never overwrites.

        Raises:
            AlreadyExistsError: *mode* is ``"create"``, and the object exists with other content.
            UnavailableError: The store did not accept it, or *key* could leave its folder.
            UnstorableValueError: It is too large to be read again.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError as ExistsError

        if len(data) > limit_bytes(key):
            raise UnstorableValueError(
                f"{key} is too large to store",
                why=f"{len(data)} bytes, {limit_bytes(key)} at most",
                hint="return less, such as the location of a file; or lower PFL_INLINE_BYTES",
            )
        self.counts["put"] += 1
        self._enter(os.path.dirname(key))
        if self._directory is not None:
            if self._may_vanish:
                _check_directory(self._directory, self.url, create=True)
            with suppress(OSError, ValueError):  # An empty directory may be in its place.
                os.rmdir(f"{self._directory}/{key}")

        def write() -> None:
            try:
                obstore.put(self._backend, key, data, mode=mode, use_multipart=False)
            except ExistsError as exc:
                # obstore takes a conflict for an object that exists.
                if re.search(_CONFLICT, str(exc)):
                    raise
                # Equal content is our own: the answer was lost, and obstore sent the request again.
                if self.get(key) != data:
                    raise AlreadyExistsError(f"{key} already exists") from exc

        self._request("write", key, write)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects in a folder and in its folders, in order of key."""
        self.counts["list"] += 1
        folder = prefix.rstrip("/")
        if self._directory is not None:
            try:
                self._enter(folder)
                yield from _walk(self._directory, folder)
            except OSError as exc:
                self._failed("list", prefix, exc)
            return
        import obstore
        from obstore.exceptions import InvalidPathError

        stream: Iterator[Sequence[ObjectMeta]] | None = None
        after = ""

        def read() -> Sequence[ObjectMeta]:
            nonlocal stream
            stream = stream or obstore.list(self._backend, f"{folder}/", offset=after or None)
            try:
                return next(stream, [])
            except Exception:
                stream = None  # Another one goes on after what was listed.
                raise

        try:
            while page := self._request("list", prefix, read):
                for meta in page:
                    after = meta["path"]
                    yield ObjectInfo(after, meta["size"], meta["last_modified"].timestamp())
        except UnavailableError as exc:
            if not isinstance(exc.__cause__, InvalidPathError):
                raise
            # Somebody else has put a key there that obstore refuses, and a page with it.
            yield from self._list_raw(folder, after)

    def _list_raw(self, folder: str, after: str) -> Iterator[ObjectInfo]:
        from . import raw_listing

        store = cast("S3Store", self._backend)
        environ = credentials()
        while True:
            read = partial(raw_listing.read_page, store, environ, folder, after)
            page = self._request("list", folder, read)
            yield from starmap(ObjectInfo, page.found if page else ())
            if not page or not page.last:
                return
            after = page.last

    def delete(self, keys: Iterable[str]) -> int:
        """
        Delete objects, a thousand per request; returns how many keys there were.

        One that does not exist is not an error.
        """
        import obstore

        count = 0
        rest = iter(keys)
        while some := list(islice(rest, _PAGE)):
            count += len(some)
            self.counts["delete"] += 1
            if self._directory is None:
                self._request("delete", some[0], partial(obstore.delete, self._backend, some))
                continue
            for key in some:
                self._enter(os.path.dirname(key))
                self._request("delete", key, partial(os.unlink, f"{self._directory}/{key}"))
        return count

    def move(self, key: str, to: str) -> None:
        """Give an object another key, whatever it is: a link is moved itself."""
        import obstore

        self.counts["put"] += 1
        self._enter(os.path.dirname(key))
        self._enter(os.path.dirname(to))

        def send() -> None:
            if self._directory is None:
                obstore.rename(self._backend, key, to)
            else:
                os.renames(f"{self._directory}/{key}", f"{self._directory}/{to}")

        self._request("move", key, send)

    def _request(self, verb: str, key: str, send: Callable[[], T]) -> T | None:
        """The result of *send*, retried if its failure may pass; None if the object is absent."""
        from ..retry import retry  # A hit in a directory does not need it.

        try:
            return retry(send, _PAUSES_S, may_pass=_may_pass)
        except BaseException as exc:
            # obstore panics if it cannot start its threads, and that is not an Exception.
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise
            self._failed(verb, key, exc)
            return None

    def _failed(self, verb: str, key: str, exc: BaseException) -> None:
        """Return if *exc* means that the object is absent, else raise what it means."""
        if isinstance(exc, PflError):
            raise exc
        text = " ".join(str(exc).split("\n\nDebug source")[0].split())
        # Objects are absent only if their store exists: a deleted bucket or an unmounted
        # directory is an error.
        if verb != "write" and isinstance(exc, _ABSENT) and _NO_BUCKET not in text:
            if self._directory is None or self._may_vanish or os.path.isdir(self._directory):
                return
            text = f"{self._directory} does not exist any more"
        hint = next(hint for pattern, hint in _HINTS if re.search(pattern, text))
        raise UnavailableError(
            f"the store {self.url} did not {verb} {key}", why=text[:500], hint=hint
        ) from exc

    def _enter(self, folder: str) -> None:
        """Check that no link leads from a folder of the directory to elsewhere."""
        if self._directory is None:
            return
        path = f"{self._directory}/{folder}".rstrip("/")
        if os.path.realpath(path) != path:
            raise UnavailableError(
                f"the store {self.url} cannot be used in {folder}",
                why=f"a link leads from there to {os.path.realpath(path)}",
                hint="put a folder in place of the link; PFL_STORE itself may be a link",
            )


def limit_bytes(key: str) -> int:
    """The size of the largest object that pfl writes and reads at *key*."""
    return _LIMITS.get(key.removeprefix("aside/").partition("/")[0], _SEALED_BYTES)


def _may_pass(exc: Exception) -> bool:
    text = str(exc).split("\n\nDebug source")[0]
    return _PASSING.search(text) is not None and " retries, max_retries" not in text


def _walk(root: str, folder: str) -> Iterator[ObjectInfo]:
    """What is below a folder, in order of key; folders that are links are not entered."""
    with os.scandir(f"{root}/{folder}") as found:
        entries = sorted(found, key=lambda it: it.name + "/" * it.is_dir(follow_symlinks=False))
    for entry in entries:
        key = f"{folder}/{entry.name}".lstrip("/")
        if not is_key(entry.name) or key.count("/") > _MAX_DEPTH:
            continue
        with suppress(*_ABSENT):  # It was deleted since it was listed.
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, key)
            else:
                info = entry.stat(follow_symlinks=False)
                yield ObjectInfo(key, info.st_size, info.st_mtime)


def _read(root: str, key: str) -> bytes:
    # obstore reads a file in another thread, which takes five times as long; open() makes six
    # system calls where this makes three.
    file = os.open(f"{root}/{key}", _FLAGS)
    try:
        data = os.read(file, _CHUNK_BYTES)
        if len(data) < _CHUNK_BYTES:
            return data
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit_bytes(key):
            return b""
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, info.st_size)  # At most 2 GiB on Linux; the limits are lower.
    finally:
        os.close(file)


def open_store(url: str, *, environ: Mapping[str, str], create: bool = False) -> Store:
    """
    Open the store at *url*.

    Args:
        url: A directory, ``file://…``, ``s3://bucket/prefix`` or ``memory://name``.
        environ: Holds the usual AWS variables; without keys in it, boto3 looks for credentials.
        create: Create the directory if it does not exist.

    Raises:
        InvalidRequestError: The URL is none of these.
        UnavailableError: The directory does not exist or cannot be created, or no AWS credentials
            are found.
    """
    scheme, separator, rest = url.partition("://")
    # s3:/bucket is a mistake, not a directory to create.
    if not separator and (os.path.isdir(url) or not re.match("[A-Za-z0-9]+:", url)):
        scheme, rest = "file", url
    if scheme == "file" and rest:
        path = os.path.abspath(rest)
        _check_directory(path, url, create=create)
        return Store(None, url, os.path.realpath(path), may_vanish=create)
    if scheme == "memory":
        import obstore.store

        return Store(_memory.setdefault(rest, obstore.store.MemoryStore()), url)
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and bucket:
        return Store(_open_s3(bucket, prefix.strip("/"), environ), url)
    raise InvalidRequestError(
        f"PFL_STORE is not a store: {url!r}",
        why="it must be a directory, file://, s3://bucket/prefix or memory://",
        hint="PFL_STORE=s3://my-bucket/pfl",
    )


def _check_directory(path: str, url: str, *, create: bool) -> None:
    try:
        if create:
            # Results and logs may hold secrets; makedirs gives its mode to the last folder only.
            for each in (os.path.dirname(path), path):
                os.makedirs(each, 0o700, exist_ok=True)
        if not os.path.isdir(path):
            raise NotADirectoryError(f"{path} does not exist, or is not a directory")
    except OSError as exc:
        raise UnavailableError(
            f"the store {url} cannot be opened",
            why=str(exc),
            hint=f"mkdir -p {path}, or set PFL_STORE to another location",
        ) from exc


def _open_s3(bucket: str, prefix: str, environ: Mapping[str, str]) -> S3Store:
    from datetime import timedelta

    import obstore.store

    _check_for_s3("PFL_STORE", bucket, r"[A-Za-z0-9._-]{3,63}", "PFL_STORE=s3://my-bucket/pfl")
    config = {name: environ[name] for name in _S3_VARIABLES if environ.get(name)}
    for name, text in config.items():
        _check_for_s3(name, text, _S3_VARIABLES[name], f"unset {name}, or correct it")
    endpoint = config.get("AWS_ENDPOINT_URL_S3") or config.get("AWS_ENDPOINT_URL", "")
    has_keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= config.keys()
    return obstore.store.S3Store(
        bucket,
        prefix=prefix or None,
        config=cast("S3Config", config),
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "5s",
            "timeout": "60s",
        },
        # Lambda bills the wait: five tries in some fifteen seconds, then an error.
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=20)},
        credential_provider=None if has_keys else find_credentials(),
    )


def _check_for_s3(name: str, text: str, pattern: str, hint: str) -> None:
    if not re.fullmatch(pattern, text):
        raise InvalidRequestError(f"{name} cannot be used for S3", why=f"it is {text!r}", hint=hint)


def find_credentials() -> Boto3CredentialProvider:
    """
    The AWS credentials of a profile, a single sign-on, a container or a machine.

    Lambda has its own in the environment and does not need this.

    Raises:
        UnavailableError: No credentials are found, or they have expired.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider()
        provider()  # Renew them now if they have expired, or fail here.
        return provider
    except Exception as exc:
        kind = type(exc).__name__
        hint = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if "SSO" in kind or "Token" in kind:
            hint = "aws sso login"
        why = "" if isinstance(exc, ValueError) else str(exc)
        raise UnavailableError("no AWS credentials found", why=why, hint=hint) from exc


def credentials() -> Mapping[str, str]:
    """The AWS credentials by variable: those of the environment, as in Lambda, or others found."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return os.environ
    found = find_credentials()()
    return {
        "AWS_ACCESS_KEY_ID": found["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": found["secret_access_key"],
        "AWS_SESSION_TOKEN": found["token"] or "",
    }


def of(settings: Settings) -> Store:
    """The store of these settings: by default the project's ``.pfl/store``, created if absent."""
    url = settings.store or str(settings.home / "store")
    return open_store(url, environ=os.environ, create=not settings.store)


# The same, opened once per process: a warm call needs no connection.
shared = cache(of)
