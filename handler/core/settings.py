"""
Every knob of pfl in one named tuple, read from the environment; a dataclass would take a third of a cold hit to import.

Flags beat environment beats default. Only the CLI reads ``.env``, and hands it in as part of *environ*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pfl.handler.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


class Knob(NamedTuple):
    """One setting: its variable, default, meaning, whether it is a secret, and the only values it may have."""

    env: str
    default: object
    meaning: str
    secret: bool = False
    choices: tuple[str, ...] = ()


def _knob(
    env: str, default: object, meaning: str, *, secret: bool = False, choices: tuple[str, ...] = ()
) -> Any:
    return Knob(env, default, meaning, secret, choices)


class Settings(NamedTuple):
    """What a call runs with; each field names its variable, default, unit and meaning."""

    prefect_api_url: str = _knob(
        "PREFECT_API_URL", "", "Prefect API to report to; empty: an embedded server"
    )
    prefect_api_key: str = _knob(
        "PREFECT_API_KEY", "", "key for Prefect Cloud or a guarded server", secret=True
    )
    store: str = _knob(
        "PFL_STORE", "", "directory, file://, s3://bucket/prefix or memory://; empty: .pfl/store"
    )
    engine: str = _knob(
        "PFL_ENGINE", "prefect", "what computes a miss", choices=("prefect", "direct")
    )
    project: str = _knob(
        "PFL_PROJECT", "", "directory with flows/; empty: found from the working directory"
    )
    manifest: str = _knob(
        "PFL_MANIFEST", "", "manifest baked into an image, trusted as it is; empty: made on the fly"
    )
    inline_bytes: int = _knob(
        "PFL_INLINE_BYTES", 262_144, "largest value kept inside a plan, in bytes of JSON"
    )
    retention_days: int = _knob(
        "PFL_RETENTION_DAYS", 30, "how long a busted value can be restored, in days"
    )
    server_idle_s: int = _knob(
        "PFL_SERVER_IDLE_S", 1_800, "stop the embedded server after this many idle seconds"
    )

    margin_s: int = _knob(
        "PFL_MARGIN_S",
        2,
        "seconds before the Lambda deadline in which nothing computes, only saves and replies",
    )
    lease_s: int = _knob(
        "PFL_LEASE_S",
        60,
        "seconds without a sign of life after which a call with no deadline counts as dead",
    )

    work_pool: str = _knob(
        "PFL_WORK_POOL", "pfl", "Prefect work pool that the worker and the event poll look at"
    )
    artifacts: float = _knob(
        "PFL_ARTIFACTS",
        1.0,
        "share of computed steps that get an artifact in Prefect: all, off, or such as 0.1",
    )
    on_prefect_down: str = _knob(
        "PFL_ON_PREFECT_DOWN",
        "fail",
        "what a miss does where Prefect does not answer",
        choices=("fail", "direct"),
    )

    tag_limits: str = _knob(
        "PFL_TAG_LIMITS",
        "off",
        "give each step of each ID a limit of 1 in Prefect too",
        choices=("off", "per-id"),
    )

    function: str = _knob(
        "PFL_FUNCTION",
        "",
        "Lambda function that pfl invoke calls; empty: the one deployed from here, else none",
    )
    preload: bool = _knob(
        "PFL_PRELOAD",
        False,
        "import the engine in Lambda's init phase, for functions that mostly miss",
    )
    prefect_secret: str = _knob(
        "PFL_PREFECT_SECRET",
        "",
        "ARN of the Secrets Manager secret or SSM parameter with the key, read in Lambda on a miss",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """
        Read the settings; an empty variable counts as unset.

        Raises:
            InvalidRequestError: A variable does not parse.
        """
        return cls(
            **{
                name: _parse(knob, text)
                for name, knob in KNOBS.items()
                if (text := environ.get(knob.env))
            }
        )

    @property
    def home(self) -> Path:
        """The project's own directory ``.pfl``: manifest, embedded store and server."""
        return self.root / ".pfl"

    @property
    def root(self) -> Path:
        """The directory that holds ``flows/``: set, else the nearest one upwards, else this checkout."""
        from pathlib import Path  # Where all is set, as in an image, nobody asks.

        if self.project:
            return Path(self.project).resolve()
        here = Path.cwd()
        for place in (here, *here.parents):
            if (place / "flows" / "pipeline.py").is_file():
                return place
        return Path(__file__).resolve().parents[2]


KNOBS: dict[str, Knob] = Settings._field_defaults
Settings.__new__.__defaults__ = tuple(knob.default for knob in KNOBS.values())


@cache
def of_process() -> Settings:
    """The settings of this process, read once: looking at a dozen variables takes a fifth of a warm hit."""
    return Settings.from_env(os.environ)


def _parse(knob: Knob, text: str) -> object:
    env, choices = knob.env, knob.choices
    if isinstance(knob.default, bool):
        if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
            raise InvalidRequestError(
                f"{env} is not yes or no", why=f"it is {text!r}", hint=f"{env}=1 or {env}=0"
            )
        return text.lower() in ("1", "true", "yes")
    if isinstance(knob.default, int):
        if not text.isascii() or not text.isdigit():
            raise InvalidRequestError(
                f"{env} is not a whole number", why=f"it is {text!r}", hint=f"{env}={knob.default}"
            )
        return int(text)
    if isinstance(knob.default, float):
        try:
            share = {"all": 1.0, "off": 0.0}[text] if text in ("all", "off") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InvalidRequestError(
                f"{env} is neither all, off nor a share", why=f"it is {text!r}", hint=f"{env}=0.1"
            )
        return share
    if choices and text not in choices:
        raise InvalidRequestError(
            f"{env} is not one of {', '.join(choices)}",
            why=f"it is {text!r}",
            hint=f"{env}={knob.default}",
        )
    return text
