"""
Objects in a directory, in S3 or in memory behind one small interface: get, put, list, delete.

What obstore raises is mapped here, once: an absent object is None, and everything else is an error, so that a store that
forbids access is never taken for a miss.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeVar

from pfl.handler.core.errors import InvalidRequestError, PflError, UnavailableError
from pfl.handler.core.settings import Settings

_NO_BUCKET = "<Code>NoSuchBucket</Code>"  # As S3 answers it; the bare word may stand in a key.
_FORBIDDEN = "status code: 403"
_HINTS = {
    (_NO_BUCKET,): "create the bucket, or set PFL_STORE to one that is there",
    (
        "ExpiredToken",
        "TokenRefreshRequired",
    ): "the AWS credentials have expired: sign in again, such as by aws sso login",
    (
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
    ): "check the AWS credentials: aws sts get-caller-identity",
    (
        "redirect without LOCATION",
        "AuthorizationHeaderMalformed",
    ): "the bucket is in another region: set AWS_REGION to it",
    ("RequestTimeTooSkewed",): "set this machine's clock",
    (
        _FORBIDDEN,
        "status code: 401",
    ): "grant this identity access to the store; nothing was taken for a miss",
    ("No space left",): "free some space, or set PFL_STORE to another place",
    ("Read-only file system",): "set PFL_STORE to a place that can be written",
    ("error sending request",): "check AWS_ENDPOINT_URL, AWS_REGION and the network",
}  # By what the system or S3 says; the first that fits. Source: Amazon S3 API Reference, "Error responses".
_CHUNK_BYTES = 32_768  # Most plans are shorter, and read by one call.
_BROKEN, _TRIES = (
    "HTTP error:",
    3,
)  # A connection that broke: obstore tries most reads and writes again, not lists and deletes.


class _Lazily:
    """A module that is imported when something in it is first asked for: a hit in a directory needs no obstore."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        import importlib

        found = self.__dict__[name] = getattr(importlib.import_module(self._name), name)
        return found


obstore, exceptions = _Lazily("obstore"), _Lazily("obstore.exceptions")
T = TypeVar("T")
_MEMORY: dict[
    str, object
] = {}  # memory://name is one store per process, as a directory is one per machine.


class AlreadyExistsError(PflError):
    """An object that was to be created is there already."""


class ObjectInfo(NamedTuple):
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

    def __init__(
        self, backend: object, url: str, directory: str | None = None, *, is_made: bool = False
    ) -> None:
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
        if self._directory is not None:
            return self._ask("read", key, lambda: _read(f"{self._directory}/{key}"))
        # Bytes arrive in a buffer of obstore's own; bytes() is the one copy.
        return self._ask("read", key, lambda: bytes(obstore.get(self._backend, key).bytes()))

    def put(self, key: str, data: bytes, *, mode: str = "overwrite") -> None:
        """
        Write an object whole; no reader ever sees part of it.

        Args:
            key: Where.
            data: What.
            mode: ``"overwrite"``, or ``"create"``, which leaves an object that is there alone.

        Raises:
            AlreadyExistsError: *mode* is ``"create"`` and an object with other bytes is there.
            UnavailableError: The store did not take it.
        """
        self.counts["put"] += 1

        def ask() -> None:
            try:
                obstore.put(self._backend, key, data, mode=mode, use_multipart=False)
            except exceptions.AlreadyExistsError as exc:
                if (
                    self.get(key) != data
                ):  # Else it is ours: the first answer was lost, and the request sent again.
                    raise AlreadyExistsError(f"{key} is there already") from exc

        self._ask("write", key, ask, tries=_TRIES if mode == "create" else 1, may_be_absent=False)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
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
                for batch in obstore.list(
                    self._backend, prefix=prefix.rstrip("/") + "/", offset=last or after or None
                ):
                    for meta in batch:
                        last = meta["path"]
                        yield ObjectInfo(last, meta["size"], meta["last_modified"].timestamp())
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

    def names(self, folder: str) -> Iterator[str]:
        """The names of the objects in a folder, in order; unlike a listing, without a look at each file of a directory."""
        if self._directory is None:
            listed = (entry.key.rpartition("/")[2] for entry in self.list(folder))
            yield from listed if self.is_ordered else sorted(listed)
            return
        self.counts["list"] += 1
        yield from (
            self._ask("list", folder, lambda: sorted(os.listdir(f"{self._directory}/{folder}")))
            or ()
        )

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder that holds nothing else, in order."""
        if self._directory is not None:
            return list(self.names(folder))
        self.counts["list"] += 1
        found = self._ask(
            "list",
            folder,
            lambda: obstore.list_with_delimiter(self._backend, prefix=f"{folder}/")[
                "common_prefixes"
            ],
        )
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found or ())

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand a request; one that is not there is no error."""
        rest = iter(keys)
        while some := list(islice(rest, 1_000)):
            self.counts["delete"] += 1
            if self._directory is None:
                self._ask("delete", some[0], lambda some=some: obstore.delete(self._backend, some))
                continue
            for key in (
                some
            ):  # A directory's batch stops at the first absent object, and the rest would stay.
                self._ask("delete", key, lambda key=key: obstore.delete(self._backend, key))

    def _ask(
        self,
        verb: str,
        key: str,
        ask: Callable[[], T],
        *,
        tries: int = _TRIES,
        may_be_absent: bool = True,
    ) -> T | None:
        """What *ask* gives, asked again where a connection broke; None where there is no such object."""
        for left in range(tries - 1, -1, -1):
            try:
                return ask()
            except PflError:
                raise
            except Exception as exc:
                if may_be_absent and isinstance(
                    exc,
                    (
                        FileNotFoundError,
                        NotADirectoryError,
                        IsADirectoryError,
                        exceptions.NotFoundError,
                    ),
                ):
                    self._check_there(verb, key, exc)
                    return None
                if not left or _BROKEN not in str(exc):
                    raise self._unavailable(verb, key, exc) from exc
        raise AssertionError("unreachable")

    def _check_there(self, verb: str, key: str, exc: Exception | None) -> None:
        # An object is absent only from a store that is there: not from a deleted bucket or an unmounted directory.
        if exc is not None and _NO_BUCKET in str(exc):
            raise self._unavailable(verb, key, exc) from exc
        if self._directory is not None and not self._is_made and not os.path.isdir(self._directory):
            raise self._unavailable(
                verb, key, NotADirectoryError(f"{self._directory} is not there any more")
            ) from exc

    def _unavailable(self, verb: str, key: str, exc: Exception) -> UnavailableError:
        text = " ".join(str(exc).split("\n\nDebug source")[0].split())
        forbids = isinstance(
            exc,
            (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError),
        )
        said = f"{text} {_FORBIDDEN if forbids else ''}"
        hint = next(
            (hint for words, hint in _HINTS.items() if any(word in said for word in words)),
            "check the store with: pfl config show",
        )
        return UnavailableError(
            f"the store {self.url} did not {verb} {key}", why=text[:500], hint=hint
        )


def _read(path: str) -> bytes:
    # obstore reads a file in another thread, and takes five times as long; open() asks the system six times where this asks four.
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, _CHUNK_BYTES)
        if len(data) < _CHUNK_BYTES:
            return data
        left = os.fstat(file).st_size
        while len(data) < left and (
            more := os.read(file, left - len(data))
        ):  # Linux hands out 2 GiB at a time.
            data += more
        return data
    finally:
        os.close(file)


def open_store(url: str, *, environ: Mapping[str, str], create: bool = False) -> Store:
    """
    Open the store that *url* names.

    Args:
        url: A directory, ``file://…``, ``s3://bucket/prefix`` or ``memory://name``.
        environ: Where the usual AWS variables are; without keys in it, they come from a profile, as for any AWS tool.
        create: Make a directory that is not there.

    Raises:
        InvalidRequestError: The URL is none of these, or ``AWS_PROFILE`` names no profile.
        UnavailableError: The directory is not there or cannot be made, or there are no AWS credentials.
    """
    scheme, sep, rest = url.partition("://")
    if not sep and (
        os.path.isdir(url) or not re.match("[A-Za-z0-9]+:", url)
    ):  # s3:/bucket is no directory to make.
        scheme, rest = "file", url
    if scheme == "file" and rest:
        path = os.path.abspath(rest)
        _check_directory(path, url, create)
        return Store(None, url, path, is_made=create)
    if scheme == "memory":
        return Store(_MEMORY.setdefault(rest, obstore.store.MemoryStore()), url)
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and bucket:
        return Store(_s3(bucket, prefix.strip("/"), environ), url)
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
            raise NotADirectoryError(
                f"{path} is no directory" if os.path.exists(path) else f"{path} is not there"
            )
    except OSError as exc:
        raise UnavailableError(
            f"the store {url} cannot be opened",
            why=str(exc),
            hint=("" if os.path.exists(path) or create else f"mkdir -p {path}, or ")
            + "set PFL_STORE to another place",
        ) from exc


def _s3(bucket: str, prefix: str, environ: Mapping[str, str]) -> object:
    from datetime import timedelta  # A directory needs none.

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
    for name, text, allowed, hint in (
        ("PFL_STORE", bucket, r"[A-Za-z0-9._-]{3,63}", "PFL_STORE=s3://my-bucket/pfl"),
        ("AWS_REGION", options.get("region", "-"), r"[a-z0-9-]+", "AWS_REGION=eu-west-1"),
        (
            "AWS_ENDPOINT_URL",
            endpoint or "http://x",
            r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?",
            "AWS_ENDPOINT_URL=https://…",
        ),
    ):
        if not re.fullmatch(allowed, text):  # obstore would panic, and take the process with it.
            raise InvalidRequestError(
                f"{name} cannot be used for S3", why=f"it says {text!r}", hint=hint
            )
    if not {"access_key_id", "secret_access_key"} <= options.keys():
        options["credential_provider"] = found_credentials()
    return obstore.store.S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "5s",
            "timeout": "60s",
        },
        # Lambda bills the wait: five tries in some fifteen seconds, then an error that says so.
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=20)},
        **options,
    )


def found_credentials() -> object:
    """
    Those of a profile, a single sign-on, a container or a machine; Lambda has its own in the environment, and never asks here.

    Raises:
        InvalidRequestError: ``AWS_PROFILE`` names no profile.
        UnavailableError: There are none, or they have expired.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        found = Boto3CredentialProvider()
        found()  # What has expired is renewed now, or told.
        return found
    except Exception as exc:
        kind = type(exc).__name__
        if kind == "ProfileNotFound":
            raise InvalidRequestError(
                "AWS_PROFILE names no profile", why=str(exc), hint="aws configure list-profiles"
            ) from exc
        why = "" if isinstance(exc, ValueError) else str(exc)
        hint = (
            "aws sso login"
            if "SSO" in kind or "Token" in kind
            else "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        raise UnavailableError("there are no AWS credentials", why=why, hint=hint) from exc


_opened: dict[Settings, Store] = {}


def shared(settings: Settings) -> Store:
    """The store that these settings name, opened once per process: a warm call pays for no new connection."""
    if settings not in _opened:
        _opened[settings] = of(settings)
    return _opened[settings]


def of(settings: Settings, environ: Mapping[str, str] | None = None) -> Store:
    """The store that the settings name: by default the directory ``.pfl/store`` of the project, made when it is absent."""
    environ = os.environ if environ is None else environ
    if settings.store:
        return open_store(settings.store, environ=environ)
    return open_store(str(settings.home / "store"), environ=environ, create=True)
