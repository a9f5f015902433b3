"""Flows as their author declares them; every mistake is reported with its file and line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from ..errors import DeclarationError
from .params import Param
from .step import EVENT_FIELDS, INPUTS, AnyStep, Step


class Flow:
    """
    A declared flow: named steps, joined by the names of their parameters.

    Attributes:
        name: The flow's name, in Prefect too.
        location: File and line of its declaration.
        description: What it is for; Prefect shows the first line.
        steps: Steps by name, each after those it needs.
        upstream: Names of the steps whose results each step takes.
        params: The flow's parameters by name.
    """

    def __init__(
        self, name: str, steps: Sequence[AnyStep], *, description: str = "", location: str = ""
    ) -> None:
        self.name = name
        self.location = location
        self.description = inspect.cleandoc(description)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise self.error(
                "the name cannot be used",
                why="a flow's name has at most 64 lowercase letters, digits, - and _",
            )
        if not steps:
            raise self.error("it has no steps")
        named: dict[str, AnyStep] = {}
        for step in steps:
            if not isinstance(step, Step):
                raise self.error(f"{step!r} is not a step", hint="put @step above the function")
            if step.name in named:
                raise self.error(
                    f"two steps are named {step.name!r}",
                    why=f"{named[step.name].location} and {step.location}",
                )
            named[step.name] = step
        self.upstream = {
            name: tuple(param for param in step.takes if param in named)
            for name, step in named.items()
        }
        try:
            TopologicalSorter(self.upstream).prepare()
        except CycleError as exc:
            cycle = exc.args[1]
            raise self.error(
                f"the steps form a cycle: {' → '.join(reversed(cycle))}",
                why=f"see {named[cycle[0]].location}",
                hint="a step receives its own last result in the parameter previous",
            ) from None
        self.steps: dict[str, AnyStep] = {}
        while named:
            # As they were declared, each after those it needs.
            ready = (name for name in named if named.keys().isdisjoint(self.upstream[name]))
            name = next(ready)
            self.steps[name] = named.pop(name)
        self.params = self._params()

    def __repr__(self) -> str:
        return f"<flow {self.name}: {', '.join(self.steps)}>"

    def error(self, what: str, *, why: str = "", hint: str = "") -> DeclarationError:
        """The error for a mistake in this flow's declaration."""
        return DeclarationError(f"flow {self.name} ({self.location}): {what}", why=why, hint=hint)

    def own_params(self, step: str) -> tuple[str, ...]:
        """The names of the flow's parameters that *step* takes."""
        others = (*INPUTS, *self.steps)
        return tuple(name for name in self.steps[step].takes if name not in others)

    def _params(self) -> dict[str, Param]:
        params: dict[str, Param] = {}
        for step in self.steps.values():
            for name in self.own_params(step.name):
                param = step.param(name)
                if name in EVENT_FIELDS:
                    raise step.error(
                        f"the parameter {name!r} has the name of a field of events",
                        hint="rename it",
                    )
                other = params.setdefault(name, param)
                # As text, since 1 == 1.0 == True.
                if repr(other._replace(location="")) != repr(param._replace(location="")):
                    raise self.error(
                        f"two steps declare the parameter {name!r} differently",
                        why=f"{other.location} and {param.location}",
                    )
        return params
