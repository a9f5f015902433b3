"""
Objects in a directory, in S3 or in memory, behind one small interface: get, put, list, delete.

The exceptions of obstore are converted here and nowhere else: an absent object is None, and
everything else is an error, so a store that forbids access is never taken for a miss. obstore is
imported on first use, since a hit in a directory needs none.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

from ..errors import InvalidRequestError, PflError, UnavailableError
from ..settings import Settings

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import MemoryStore, ObjectStore, S3Config, S3Store

# As an element of S3's answer, since the bare word can be part of a key.
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
_FORBIDDEN = "status code: 403"
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
        f"{_FORBIDDEN}|status code: 401",
        "grant this identity access to the store; pfl did not count it as a miss",
    ),
    ("No space left", "free some space, or set PFL_STORE to another location"),
    ("Read-only file system", "set PFL_STORE to a writable location"),
    ("error sending request", "check AWS_ENDPOINT_URL, AWS_REGION and the network"),
    ("", "check the store with: pfl config show"),
)
_CHUNK_BYTES = 32_768  # Most plans are shorter, so one call reads them.
# A connection that broke: obstore retries most reads and writes itself, but no lists and deletes.
_BROKEN = "HTTP error:"
_TRIES = 3
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

# obstore's options for S3, and the variables that set each; the first one that is set counts.
_S3_VARIABLES = {
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN",),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
}
_HOST = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)"
_ENDPOINT = rf"(https?://{_HOST}(:[0-9]{{1,5}})?(/[A-Za-z0-9._/-]*)?)?"

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
        is_ordered: Whether a listing is in order of key.
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
        self.is_ordered = url.startswith("s3://")
        self.is_local = directory is not None

    @property
    def _backend(self) -> ObjectStore:
        if self._opened is None:
            import obstore.store

            self._opened = obstore.store.LocalStore(self._directory)
        return self._opened

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None if it does not exist."""
        self.counts["get"] += 1
        if self._directory is not None:
            return self._request("read", key, lambda: _read(f"{self._directory}/{key}"))
        import obstore

        # Bytes arrive in a buffer of obstore's own; bytes() is the one copy.
        return self._request("read", key, lambda: bytes(obstore.get(self._backend, key).bytes()))

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
            UnavailableError: The store did not accept it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError as ExistsError

        self.counts["put"] += 1

        def write() -> None:
            try:
                obstore.put(self._backend, key, data, mode=mode, use_multipart=False)
            except ExistsError as exc:
                # Equal content is our own: the answer was lost, and obstore sent the request again.
                if self.get(key) != data:
                    raise AlreadyExistsError(f"{key} already exists") from exc

        tries = _TRIES if mode == "create" else 1
        self._request("write", key, write, tries=tries, may_be_absent=False)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """
        The objects in a folder and in its folders: in order of key on S3, else in any order.

        Args:
            prefix: The folder.
            after: List only greater keys.
        """
        import obstore
        from obstore.exceptions import NotFoundError

        self.counts["list"] += 1
        folder = prefix.rstrip("/") + "/"
        last = ""
        tries = _TRIES if self.is_ordered else 1
        while True:
            try:
                for batch in obstore.list(self._backend, folder, offset=last or after or None):
                    for meta in batch:
                        last = meta["path"]
                        yield ObjectInfo(last, meta["size"], meta["last_modified"].timestamp())
                if not last:
                    self._check_store_exists("list", prefix, None)
                return
            except (NotFoundError, FileNotFoundError) as exc:
                self._check_store_exists("list", prefix, exc)
                return
            except PflError:
                raise
            except Exception as exc:
                tries -= 1
                if not tries or _BROKEN not in str(exc):
                    raise self._unavailable("list", prefix, exc) from exc

    def names(self, folder: str) -> Iterator[str]:
        """The names of the objects in a folder, in order; faster than :meth:`list`."""
        if self._directory is None:
            listed = (entry.key.rpartition("/")[2] for entry in self.list(folder))
            yield from listed if self.is_ordered else sorted(listed)
            return
        self.counts["list"] += 1
        path = f"{self._directory}/{folder}"
        yield from self._request("list", folder, lambda: sorted(os.listdir(path))) or ()

    def folders(self, folder: str) -> Sequence[str]:
        """The names of the folders in a folder that holds nothing else, in order."""
        if self._directory is not None:
            return list(self.names(folder))
        import obstore

        self.counts["list"] += 1
        found = self._request(
            "list", folder, partial(obstore.list_with_delimiter, self._backend, f"{folder}/")
        )
        paths = found["common_prefixes"] if found else ()
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def delete(self, keys: Iterable[str]) -> int:
        """
        Delete objects, a thousand per request; returns how many keys there were.

        One that does not exist is not an error.
        """
        import obstore

        count = 0
        rest = iter(keys)
        while some := list(islice(rest, 1_000)):
            count += len(some)
            self.counts["delete"] += 1
            if self._directory is None:
                self._request("delete", some[0], partial(obstore.delete, self._backend, some))
                continue
            # In a directory, one request for all would stop at the first object that is absent.
            for key in some:
                self._request("delete", key, partial(obstore.delete, self._backend, key))
        return count

    def _request(
        self,
        verb: str,
        key: str,
        send: Callable[[], T],
        *,
        tries: int = _TRIES,
        may_be_absent: bool = True,
    ) -> T | None:
        """The result of *send*, retried if a connection broke; None if the object is absent."""
        while True:
            tries -= 1
            try:
                return send()
            except PflError:
                raise
            except Exception as exc:
                from obstore.exceptions import NotFoundError

                if may_be_absent and isinstance(exc, (*_ABSENT, NotFoundError)):
                    self._check_store_exists(verb, key, exc)
                    return None
                if not tries or _BROKEN not in str(exc):
                    raise self._unavailable(verb, key, exc) from exc

    def _check_store_exists(self, verb: str, key: str, exc: Exception | None) -> None:
        # Objects are absent only if their store exists: a deleted bucket or an unmounted
        # directory is an error.
        if exc is not None and _NO_BUCKET in str(exc):
            raise self._unavailable(verb, key, exc) from exc
        if self._directory is None or self._may_vanish or os.path.isdir(self._directory):
            return
        gone = NotADirectoryError(f"{self._directory} does not exist any more")
        raise self._unavailable(verb, key, gone) from exc

    def _unavailable(self, verb: str, key: str, exc: Exception) -> UnavailableError:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        text = " ".join(str(exc).split("\n\nDebug source")[0].split())
        evidence = text
        if isinstance(exc, PermissionError | PermissionDeniedError | UnauthenticatedError):
            evidence += f" {_FORBIDDEN}"
        hint = next(hint for pattern, hint in _HINTS if re.search(pattern, evidence))
        return UnavailableError(
            f"the store {self.url} did not {verb} {key}", why=text[:500], hint=hint
        )


def _read(path: str) -> bytes:
    # obstore reads a file in another thread, which takes five times as long; open() makes six
    # system calls where this makes four.
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, _CHUNK_BYTES)
        if len(data) < _CHUNK_BYTES:
            return data
        missing = os.fstat(file).st_size - len(data)
        # One read returns at most 2 GiB on Linux.
        while missing > 0 and (chunk := os.read(file, missing)):
            data += chunk
            missing -= len(chunk)
        return data
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
        InvalidRequestError: The URL is none of these, or the profile in ``AWS_PROFILE`` does not
            exist.
        UnavailableError: The directory does not exist or cannot be created, or no AWS credentials
            are found.
    """
    scheme, separator, rest = url.partition("://")
    # s3:/bucket is a mistake, not a directory to create.
    if not separator and (os.path.isdir(url) or not re.match("[A-Za-z0-9]+:", url)):
        scheme, rest = "file", url
    if scheme == "file" and rest:
        path = os.path.abspath(rest)
        _check_directory(path, url, create)
        return Store(None, url, path, may_vanish=create)
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


def _check_directory(path: str, url: str, create: bool) -> None:
    hint = "set PFL_STORE to another location"
    try:
        if create:
            os.makedirs(path, exist_ok=True)
        if not os.path.exists(path):
            hint = f"mkdir -p {path}, or {hint}"
            raise FileNotFoundError(f"{path} does not exist")
        if not os.path.isdir(path):
            raise NotADirectoryError(f"{path} is not a directory")
    except OSError as exc:
        raise UnavailableError(
            f"the store {url} cannot be opened", why=str(exc), hint=hint
        ) from exc


def _open_s3(bucket: str, prefix: str, environ: Mapping[str, str]) -> S3Store:
    from datetime import timedelta

    import obstore.store

    config: dict[str, str] = {}
    for option, variables in _S3_VARIABLES.items():
        for name in variables:
            if environ.get(name):
                config.setdefault(option, environ[name])
    endpoint = config.get("endpoint", "")
    _check_for_s3("PFL_STORE", bucket, r"[A-Za-z0-9._-]{3,63}", "PFL_STORE=s3://my-bucket/pfl")
    _check_for_s3("AWS_REGION", config.get("region", ""), r"[a-z0-9-]*", "AWS_REGION=eu-west-1")
    _check_for_s3("AWS_ENDPOINT_URL", endpoint, _ENDPOINT, "AWS_ENDPOINT_URL=https://…")
    has_keys = {"access_key_id", "secret_access_key"} <= config.keys()
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
    # obstore would panic, and end the process.
    if not re.fullmatch(pattern, text):
        raise InvalidRequestError(f"{name} cannot be used for S3", why=f"it is {text!r}", hint=hint)


def find_credentials() -> Boto3CredentialProvider:
    """
    The AWS credentials of a profile, a single sign-on, a container or a machine.

    Lambda has its own in the environment and does not need this.

    Raises:
        InvalidRequestError: The profile in ``AWS_PROFILE`` does not exist.
        UnavailableError: No credentials are found, or they have expired.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider()
        provider()  # Renew them now if they have expired, or fail here.
        return provider
    except Exception as exc:
        kind = type(exc).__name__
        if kind == "ProfileNotFound":
            what = "the profile in AWS_PROFILE does not exist"
            hint = "aws configure list-profiles"
            raise InvalidRequestError(what, why=str(exc), hint=hint) from exc
        hint = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if "SSO" in kind or "Token" in kind:
            hint = "aws sso login"
        why = "" if isinstance(exc, ValueError) else str(exc)
        raise UnavailableError("no AWS credentials found", why=why, hint=hint) from exc


def of(settings: Settings) -> Store:
    """The store of these settings: by default the project's ``.pfl/store``, created if absent."""
    url = settings.store or str(settings.home / "store")
    return open_store(url, environ=os.environ, create=not settings.store)


# The same, opened once per process: a warm call needs no connection.
shared = cache(of)
