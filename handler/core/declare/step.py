"""Steps as their author declares them; every mistake is reported with its file and line."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import (
    Generic,
    ParamSpec,
    SupportsIndex,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from .. import durations
from ..errors import DeclarationError, PflError
from ..store.values import round_trip
from .annotations import accepted
from .location import location
from .params import Param

# Parameters with a special meaning, and fields of an event that cannot name a parameter.
INPUTS = ("id", "previous")
EVENT_FIELDS = ("step", "bust", "skip", "flow")
# The type and the least value of an option; one that may not be 0 may be None.
_NUMBERS = {
    "retries": (int, 0),
    "retry_delay_s": (float, 0),
    "timeout_s": (float, 0.001),
    "limit": (int, 1),
}

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class StepOptions(TypedDict, total=False):
    """The options of ``@step``; see :class:`Step`."""

    retries: int
    retry_delay_s: float
    timeout_s: float | None
    limit: int | None
    cache_for: str | int | None
    depends_on: Sequence[object]
    version: str | None


class Step(Generic[P, R]):
    """
    A declared step. Calling it calls the function, so ``b("abc", 3)`` works in a unit test.

    Attributes:
        function: The function.
        name: The function's name; unique in the image.
        location: File and line of the function.
        takes: Names of its parameters, in order.
        retries, retry_delay_s, timeout_s: How both engines run it.
        limit: How many may run at once across IDs; None: any number.
        cache_for_s: Seconds for which a result is valid; None: until code or inputs change.
        depends_on: What else the step depends on, and its fingerprint covers.
        version: The author's own part of the fingerprint.
    """

    def __init__(self, function: Callable[P, R], **options: Unpack[StepOptions]) -> None:
        if not inspect.isfunction(function):
            raise DeclarationError(
                f"@step needs a plain function, not {function!r}", hint="put @step above a def"
            )
        code = function.__code__
        self.function: Callable[P, R] = function
        self.name = function.__name__
        self.location = location(code.co_filename, code.co_firstlineno)
        update_wrapper(self, function)
        self._check_name()
        self._set_options(options)
        self.signature = inspect.signature(function)
        self.takes = tuple(self.signature.parameters)
        self.is_async = inspect.iscoroutinefunction(function)
        for parameter in self.signature.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise self.error(
                    f"parameter {parameter} cannot be passed by name",
                    hint="name each parameter it needs",
                )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        # By name if possible: a function pickled by value has no source, so no fingerprint.
        module = self.function.__module__
        is_importable = getattr(sys.modules.get(module), self.name, None) is self
        if is_importable and module != "__main__":
            return self.name
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"<step {self.name} at {self.location}>"

    def error(self, what: str, *, why: str = "", hint: str = "") -> DeclarationError:
        """The error for a mistake in this step's declaration."""
        return DeclarationError(f"step {self.name} ({self.location}): {what}", why=why, hint=hint)

    def param(self, name: str) -> Param:
        """
        The flow parameter *name*, as this step declares it.

        Raises:
            DeclarationError: It has no default, or a default that is not JSON or of another type.
        """
        parameter = self.signature.parameters[name]
        if parameter.default is parameter.empty:
            raise self.error(
                f"unknown parameter {name!r}",
                why="it is neither id, previous nor a step of the flow, and has no default",
                hint=f"give it a default, or add the step {name} to the flow",
            )
        try:
            default, _ = round_trip(parameter.default)
        except PflError as exc:
            raise self.error(
                f"the default of {name!r} cannot be stored",
                why=exc.why.replace("result", name, 1),
                hint="use a JSON value",
            ) from exc
        kinds, choices = accepted(self._annotation(name), default)
        param = Param(kinds, choices, default, self.location)
        try:
            return param._replace(default=param.check(name, default))
        except PflError as exc:
            raise self.error(
                f"the default of {name!r} does not fit its type", why=exc.why, hint=exc.hint
            ) from exc

    def _annotation(self, name: str) -> object:
        try:
            parameters = inspect.signature(self.function, eval_str=True).parameters
        except Exception:  # It uses a name that only type checkers import.
            return inspect.Parameter.empty
        return parameters[name].annotation

    def _check_name(self) -> None:
        reserved = (*INPUTS, *EVENT_FIELDS)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,79}", self.name) or self.name in reserved:
            raise self.error(
                "the name cannot be used",
                why="a step's name has at most 80 ASCII letters, digits and _, and is none of "
                + ", ".join(reserved),
                hint="rename the function",
            )

    def _set_options(self, options: StepOptions) -> None:
        known = StepOptions.__annotations__
        if unknown := sorted(options.keys() - known.keys()):
            raise self.error(
                f"unknown option {unknown[0]!r}", hint=f"the options are {', '.join(known)}"
            )
        self.retries = options.get("retries", 0)
        self.retry_delay_s = options.get("retry_delay_s", 0)
        self.timeout_s = options.get("timeout_s")
        self.limit = options.get("limit")
        self.depends_on = tuple(options.get("depends_on", ()))
        self.version = options.get("version")
        for option, (kind, least) in _NUMBERS.items():
            value = getattr(self, option)
            # True is an int, but a mistake here.
            is_number = isinstance(value, int | kind) and not isinstance(value, bool)
            is_absent = value is None and least > 0
            if not is_absent and not (is_number and least <= value < 1e9):
                name = "whole number" if kind is int else "number of seconds"
                raise self.error(
                    f"invalid {option} {value!r}", why=f"it must be a {name}, at least {least}"
                )
        if not isinstance(self.version, str | None):
            raise self.error(
                f"invalid version {self.version!r}", why="it is not a string", hint='version="2"'
            )
        cache_for = options.get("cache_for")
        seconds = durations.parse_s(cache_for) if isinstance(cache_for, str) else cache_for
        if cache_for is not None and (type(seconds) is not int or seconds < 1):
            raise self.error(
                f"invalid cache_for {cache_for!r}",
                why="it must be whole seconds, or a number followed by s, m, h, d or w",
                hint='cache_for="1h"',
            )
        self.cache_for_s = seconds


# A step of any parameters and any result.
AnyStep: TypeAlias = Step[..., object]


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(**options: Unpack[StepOptions]) -> Callable[[Callable[P, R]], Step[P, R]]: ...


def step(
    function: Callable[P, R] | None = None, /, **options: Unpack[StepOptions]
) -> Step[P, R] | Callable[[Callable[P, R]], Step[P, R]]:
    """
    Declare a step.

    A parameter called ``id`` receives the ID, one named like another step receives that step's
    result, and ``previous`` receives this step's last result for the ID, or None. Every other
    parameter has a default, and is a parameter of the flow.

    Args:
        function: The function, for ``@step`` without options.
        options: ``retries``, ``retry_delay_s``, ``timeout_s``, ``limit`` (how many run at once,
            across IDs), ``cache_for`` (such as ``"1h"``), and two that count as code:
            ``depends_on`` and ``version``.

    Raises:
        DeclarationError: The declaration is wrong; the message has file and line.
    """
    if function is None:
        return lambda function: Step(function, **options)
    return Step(function, **options)
