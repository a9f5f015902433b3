"""Steps and flows as their author declares them; every mistake is told at declaration, with file and line."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import update_wrapper

from pfl.handler.core.declare.params import KIND_OF, Param
from pfl.handler.core.errors import DeclarationError, PflError
from pfl.handler.core.store.values import round_trip

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_RESERVED = {"id", "previous", "step", "bust", "skip", "flow"}


class Step:
    """
    A declared step. Calling it calls the plain function, so ``b("abc", 3)`` works in a unit test.

    Attributes:
        function: The function as it was written.
        name: The function's name; unique in the image.
        takes: Names of its parameters, in order.
        retries, retry_delay_s, timeout_s: What Prefect's task is given; the direct engine heeds them too.
        limit: How many may run at once across IDs, or None.
        cache_for_s: Seconds a result stays valid, or None for as long as code and inputs do.
        depends_on: What else the author says the step rests on.
        version: The author's own word in the fingerprint.
    """

    def __init__(
        self,
        function: Callable,
        *,
        retries: int = 0,
        retry_delay_s: float = 0,
        timeout_s: float | None = None,
        limit: int | None = None,
        cache_for: str | int | None = None,
        depends_on: Sequence[object] = (),
        version: str | None = None,
    ) -> None:
        if not inspect.isfunction(function):
            raise DeclarationError(
                f"@step wants a plain function, not {function!r}", hint="put @step on top of a def"
            )
        self.function, self.name, self.where = function, function.__name__, place(function)
        update_wrapper(self, function)
        self._check_name()
        self._number("retries", retries, "whole number", 0)
        self._number("retry_delay_s", retry_delay_s, "number of seconds", 0)
        if timeout_s is not None:
            self._number("timeout_s", timeout_s, "number of seconds", 0.001)
        if limit is not None:
            self._number("limit", limit, "whole number", 1)
        if version is not None and not isinstance(version, str):
            raise self.error(
                f"version is {version!r}", why="it has to be text", hint='@step(version="2")'
            )
        self.retries, self.retry_delay_s, self.timeout_s, self.limit = (
            retries,
            retry_delay_s,
            timeout_s,
            limit,
        )
        self.cache_for_s = None if cache_for is None else self._duration(cache_for)
        self.depends_on, self.version = tuple(depends_on), version
        self.signature = inspect.signature(function)
        self.takes = tuple(self.signature.parameters)
        for name, parameter in self.signature.parameters.items():
            if parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
                parameter.POSITIONAL_ONLY,
            ):
                raise self.error(
                    f"parameter {parameter} cannot be filled by name",
                    hint="name each parameter it needs",
                )
            if name == self.name:
                raise self.error(
                    f"the steps form a cycle: {name} → {name}",
                    why="it takes its own result",
                    hint="previous",
                )
        self.is_async = inspect.iscoroutinefunction(function)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.function(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> object:
        # By name where it has one: a function pickled by value has lost its source, and so its fingerprint.
        if (
            getattr(sys.modules.get(self.function.__module__), self.name, None) is self
            and self.function.__module__ != "__main__"
        ):
            return _named, (self.function.__module__, self.name)
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"<step {self.name} at {self.where}>"

    def error(self, what: str, *, why: str = "", hint: str = "") -> DeclarationError:
        """A mistake in this step's declaration."""
        return DeclarationError(f"step {self.name} ({self.where}): {what}", why=why, hint=hint)

    def param(self, name: str) -> Param:
        """
        The flow parameter *name*, as this step declares it.

        Raises:
            DeclarationError: It has no default, or one that JSON cannot hold.
        """
        parameter = self.signature.parameters[name]
        if parameter.default is parameter.empty:
            raise self.error(
                f"unknown parameter {name!r}",
                why="it is neither id, previous nor a step of the flow, and has no default",
                hint=f"give it a default to make it a parameter of the flow, or add the step {name} to the flow",
            )
        try:
            default, _ = round_trip(parameter.default)
        except PflError as exc:
            why = exc.why.replace("result", name, 1)
            raise self.error(
                f"the default of {name!r} cannot be stored", why=why, hint="use a JSON value"
            ) from exc
        kinds, choices = _accepts(self._annotation(name), default)
        param = Param(kinds, choices, default, place=self.where)
        try:
            return param._replace(default=param.check(name, default))
        except PflError as exc:
            raise self.error(
                f"the default of {name!r} does not fit its type", why=exc.why, hint=exc.hint
            ) from exc

    def _annotation(self, name: str) -> object:
        try:
            return inspect.signature(self.function, eval_str=True).parameters[name].annotation
        except Exception:  # A name only type checkers see; the default says enough.
            return inspect.Parameter.empty

    def _check_name(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,79}", self.name) or self.name in _RESERVED:
            why = (
                "a step's name is at most 80 ASCII letters, digits and underscores, and none of "
                + ", ".join(_RESERVED)
            )
            raise self.error("the name cannot be used", why=why, hint="rename the function")

    def _number(self, option: str, value: object, wanted: str, least: float) -> None:
        kinds = int if wanted == "whole number" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < 1e9:
            raise self.error(
                f"{option} is {value!r}", why=f"it has to be a {wanted}, at least {least}"
            )

    def _duration(self, text: str | int) -> int:
        match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text) if isinstance(text, str) else None
        seconds = int(match[1]) * _UNITS[match[2]] if match else text
        if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
            why = "it has to be seconds, or a number with s, m, h, d or w"
            raise self.error(f"cache_for is {text!r}", why=why, hint='@step(cache_for="1h")')
        return seconds


class Flow:
    """
    A declared flow: named steps, joined by the names of their parameters.

    Attributes:
        name: The flow's name, in Prefect too.
        steps: Steps by name, each after those it needs.
        upstream: Names of the steps whose results each step takes.
        params: The flow's parameters by name.
        description: What it is for; the first line is shown in Prefect.
    """

    def __init__(
        self, name: str, steps: Sequence[Step], *, description: str = "", where: str = ""
    ) -> None:
        self.name, self.where, self.description = name, where, inspect.cleandoc(description)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            why = "a flow's name is lowercase letters, digits, dashes and underscores, at most 64"
            raise self.error("the name cannot be used", why=why)
        if not steps:
            raise self.error("it has no steps")
        named: dict[str, Step] = {}
        for one in steps:
            if not isinstance(one, Step):
                raise self.error(f"{one!r} is no step", hint="put @step on top of the function")
            if one.name in named:
                raise self.error(
                    f"two steps are named {one.name!r}",
                    why=f"{named[one.name].where} and {one.where}",
                )
            named[one.name] = one
        self.upstream = {n: tuple(p for p in s.takes if p in named) for n, s in named.items()}
        self.steps = {n: named[n] for n in self._in_order(named)}
        self.params = self._params()

    def __repr__(self) -> str:
        return f"<flow {self.name}: {', '.join(self.steps)}>"

    def error(self, what: str, *, why: str = "", hint: str = "") -> DeclarationError:
        """A mistake in this flow's declaration."""
        return DeclarationError(f"flow {self.name} ({self.where}): {what}", why=why, hint=hint)

    def own_params(self, step: str) -> tuple[str, ...]:
        """The names of the flow's parameters that *step* takes."""
        return tuple(
            p for p in self.steps[step].takes if p not in self.steps and p not in ("id", "previous")
        )

    def _in_order(self, named: dict[str, Step]) -> Iterable[str]:
        done: dict[str, None] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                cycle = " → ".join((*path[path.index(name) :], name))
                raise self.error(f"the steps form a cycle: {cycle}", why=f"see {named[name].where}")
            if name not in done:
                for before in self.upstream[name]:
                    visit(before, (*path, name))
                done[name] = None

        for name in named:
            visit(name, ())
        return done

    def _params(self) -> dict[str, Param]:
        params: dict[str, Param] = {}
        for step in self.steps:
            for name in self.own_params(step):
                new = self.steps[step].param(name)
                if name in ("step", "bust", "skip", "flow"):
                    raise self.steps[step].error(
                        f"the parameter {name!r} has a name of pfl's own", hint="rename it"
                    )
                old = params.setdefault(name, new)
                if (old.kinds, old.choices, repr(old.default)) != (
                    new.kinds,
                    new.choices,
                    repr(new.default),
                ):
                    raise self.error(
                        f"the parameter {name!r} is declared twice, and not alike",
                        why=f"{old.place} and {new.place}",
                    )
        return params


def step(function: Callable | None = None, **options: object) -> Step | Callable[[Callable], Step]:
    """
    Declare a step.

    A parameter called ``id`` receives the ID, one named like another step that step's result, ``previous`` this step's last
    output for the ID (or None). Any other parameter has a default and is a parameter of the flow.

    Args:
        function: The function, where ``@step`` stands alone.
        options: ``retries``, ``retry_delay_s``, ``timeout_s``, ``limit`` (at once, across IDs), ``cache_for`` (``"1h"``),
            ``depends_on`` and ``version`` (both count as code).

    Raises:
        DeclarationError: The declaration is wrong; it names file and line.
    """
    return Step(function) if function is not None else lambda function: _with(function, options)


def _with(function: Callable, options: dict[str, object]) -> Step:
    known = set(inspect.signature(Step.__init__).parameters) - {"self", "function"}
    if unknown := sorted(set(options) - known):
        raise DeclarationError(
            f"step {getattr(function, '__name__', function)} ({place(function)}): unknown option {unknown[0]!r}",
            hint=f"the options are {', '.join(sorted(known))}",
        )
    return Step(function, **options)


def _named(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


def place(thing: object) -> str:
    """Where a function stands, as ``flows/b.py:6``; the path is as short as the import path allows."""
    code = getattr(thing, "__code__", None)
    return short_place(code.co_filename, code.co_firstlineno) if code else "?"


def short_place(filename: str, line: int) -> str:
    """``filename:line``, relative to the directory on Python's path that holds it."""
    roots = sorted(
        (r.rstrip("/") for r in sys.path if r and filename.startswith(r.rstrip("/") + "/")), key=len
    )
    return f"{filename[len(roots[-1]) + 1 :] if roots else filename}:{line}"


def _accepts(annotation: object, default: object) -> tuple[tuple[str, ...], tuple[object, ...]]:
    """The JSON kinds and the choices that an annotation allows; kinds are ``("any",)`` where it says nothing we know."""
    origin = typing.get_origin(annotation)
    if annotation in KIND_OF or annotation is None:
        return (KIND_OF.get(annotation, "null"),), ()
    if origin is typing.Literal:
        choices = typing.get_args(annotation)
        return tuple(dict.fromkeys(KIND_OF.get(type(c), "any") for c in choices)), choices
    if origin is typing.Annotated:
        return _accepts(typing.get_args(annotation)[0], default)
    if origin in (typing.Union, types.UnionType):
        parts = [_accepts(each, default) for each in typing.get_args(annotation)]
        free = {kind for kinds, some in parts if not some for kind in kinds}
        choices = tuple(c for _, some in parts for c in some if KIND_OF.get(type(c)) not in free)
        if choices and ("null",) in [kinds for kinds, _ in parts]:
            choices += (None,)
        return tuple(dict.fromkeys(kind for kinds, _ in parts for kind in kinds)), choices
    if origin in KIND_OF:
        return (KIND_OF[origin],), ()
    if annotation is inspect.Parameter.empty and default is not None:
        return (KIND_OF[type(default)],), ()
    return ("any",), ()
