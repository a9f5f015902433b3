"""
Every setting of pfl in one named tuple, read from the environment.

A flag beats the environment, which beats the default. Only the CLI reads ``.env``, and passes it in
as part of *environ*. A dataclass would take a third of a cold hit to import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


class Setting(NamedTuple):
    """
    One setting.

    Attributes:
        env: Its environment variable.
        default: Its value if the variable is not set.
        meaning: What it is, with its unit.
        secret: Whether its value is masked wherever it is printed.
        choices: The only values it may have; empty: any.
    """

    env: str
    default: str | float
    meaning: str
    secret: bool = False
    choices: tuple[str, ...] = ()


# Any, so that a field is declared with the type of its value and described in the same place.
_setting: Any = Setting


class Settings(NamedTuple):
    """The settings of a call."""

    prefect_api_url: str = _setting(
        "PREFECT_API_URL", "", "Prefect API to report to; empty: an embedded server"
    )
    prefect_api_key: str = _setting(
        "PREFECT_API_KEY", "", "API key for Prefect Cloud or a protected server", secret=True
    )
    store: str = _setting(
        "PFL_STORE", "", "directory, file://, s3://bucket/prefix or memory://; empty: .pfl/store"
    )
    engine: str = _setting(
        "PFL_ENGINE", "prefect", "what computes a miss", choices=("prefect", "direct")
    )
    project: str = _setting(
        "PFL_PROJECT", "", "directory with flows/; empty: the working directory or one above it"
    )
    manifest: str = _setting(
        "PFL_MANIFEST",
        "",
        "manifest that was built into an image; empty: made from the current flows",
    )
    inline_bytes: int = _setting(
        "PFL_INLINE_BYTES", 262_144, "largest value kept inside a plan, in bytes of JSON"
    )
    retention_days: int = _setting(
        "PFL_RETENTION_DAYS", 30, "how long a busted value can be restored, in days"
    )
    server_idle_s: int = _setting(
        "PFL_SERVER_IDLE_S", 1_800, "stop the embedded server after this many idle seconds"
    )
    margin_s: int = _setting(
        "PFL_MARGIN_S",
        2,
        "seconds before the Lambda deadline that are reserved for saving and replying",
    )
    lease_s: int = _setting(
        "PFL_LEASE_S",
        60,
        "seconds without a heartbeat after which a call without a deadline counts as dead",
    )
    work_pool: str = _setting(
        "PFL_WORK_POOL", "pfl", "Prefect work pool that the worker and scheduled polls serve"
    )
    artifacts: float = _setting(
        "PFL_ARTIFACTS",
        1.0,
        "share of computed steps with an artifact in Prefect: all, off, or a number such as 0.1",
    )
    on_prefect_down: str = _setting(
        "PFL_ON_PREFECT_DOWN",
        "fail",
        "what a miss does if Prefect does not answer",
        choices=("fail", "direct"),
    )
    tag_limits: str = _setting(
        "PFL_TAG_LIMITS",
        "off",
        "also limit each step of each ID to one run at a time in Prefect",
        choices=("off", "per-id"),
    )
    function: str = _setting(
        "PFL_FUNCTION",
        "",
        "Lambda function that pfl invoke calls; empty: the one deployed from here, if any",
    )
    preload: bool = _setting(
        "PFL_PRELOAD",
        False,
        "import the engine when Lambda starts, for functions that mostly miss",
    )
    prefect_secret: str = _setting(
        "PFL_PREFECT_SECRET",
        "",
        "ARN of the Secrets Manager secret or SSM parameter with the API key, read on a miss",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """
        Read the settings; an empty variable counts as unset.

        Raises:
            InvalidRequestError: The value of a variable is invalid.
        """
        return cls._make(_value(setting, environ.get(setting.env)) for setting in SETTINGS.values())

    def with_absolute_paths(self) -> Settings:
        """The same settings, whatever the working directory becomes: a step may change it."""
        store = self.store
        scheme = "file://" if store.startswith("file://") else ""
        path = store.removeprefix(scheme)
        if path and ":" not in path:
            store = scheme + os.path.abspath(path)
        return self._replace(
            project=os.path.abspath(self.project or self.root),
            store=store,
            manifest=self.manifest and os.path.abspath(self.manifest),
        )

    @property
    def home(self) -> Path:
        """The project's directory ``.pfl``: its manifest, embedded store and embedded server."""
        return self.root / ".pfl"

    @property
    def root(self) -> Path:
        """The project: the configured one, else the nearest parent with flows, else pfl's."""
        from pathlib import Path  # Imported late: an image sets every path, and does not need it.

        if self.project:
            return Path(self.project).resolve()
        start = Path.cwd()
        for directory in (start, *start.parents):
            if (directory / "flows" / "pipeline.py").is_file():
                return directory
        return Path(__file__).resolve().parents[2]


SETTINGS: dict[str, Setting] = Settings._field_defaults
Settings.__new__.__defaults__ = tuple(setting.default for setting in SETTINGS.values())


@cache
def of_process() -> Settings:
    """The settings of this process, read once: reading them takes a fifth of a warm hit."""
    return Settings.from_env(os.environ).with_absolute_paths()


def _value(setting: Setting, text: str | None) -> str | float:
    if not text:
        return setting.default
    example = setting.default
    if isinstance(example, bool):
        expected = "yes or no"
        example = 1
        if text.lower() in ("1", "true", "yes"):
            return True
        if text.lower() in ("0", "false", "no"):
            return False
    elif isinstance(example, int):
        expected = "a whole number"
        if text.isascii() and text.isdigit():
            return int(text)
    elif isinstance(example, float):
        expected = "all, off or a share"
        example = 0.1
        with suppress(ValueError):
            share = float({"all": "1", "off": "0"}.get(text, text))
            if 0 <= share <= 1:
                return share
    else:
        expected = " or ".join(setting.choices)
        if not expected or text in setting.choices:
            return text
    raise InvalidRequestError(
        f"{setting.env} is not {expected}", why=f"it is {text!r}", hint=f"{setting.env}={example}"
    )
