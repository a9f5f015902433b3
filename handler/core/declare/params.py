"""Parameters of a flow: what each accepts, and how an event's value or a terminal's text becomes one."""

from __future__ import annotations

import json
from typing import NamedTuple

from pfl.handler.core.errors import InvalidRequestError, PflError
from pfl.handler.core.store.values import round_trip

KIND_OF = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    dict: "dict",
    type(None): "null",
}


class Param(NamedTuple):
    """
    One parameter of a flow.

    Attributes:
        kinds: What it accepts, of ``int``, ``float``, ``str``, ``bool``, ``list``, ``dict``, ``null`` and ``any``.
        choices: The only values it accepts of their own kind, where it names them.
        default: Its value when the event gives none.
        place: File and line of the step that declares it.
    """

    kinds: tuple[str, ...]
    choices: tuple[object, ...]
    default: object
    place: str = ""

    def check(self, name: str, value: object) -> object:
        """
        *value*, as the key and the step see it; an int for a float becomes one, so that 2 and 2.0 have one key.

        Raises:
            InvalidRequestError: The parameter does not accept it.
        """
        kind = KIND_OF.get(type(value), "other")
        if (
            kind == "int"
            and "float" in self.kinds
            and "int" not in self.kinds
            and abs(value) <= 2**53
        ):
            value, kind = float(value), "float"
        if "any" not in self.kinds and kind not in self.kinds:
            raise self._refuse(name, value)
        rivals = [choice for choice in self.choices if type(choice) is type(value)]
        if rivals and value not in rivals:
            raise self._refuse(name, value)
        if kind in ("int", "float", "list", "dict", "other"):
            try:
                value, _ = round_trip(
                    value
                )  # A NaN has no key, nor has what is no JSON; text and true always do.
            except PflError as exc:
                raise self._refuse(name, value, exc.why.replace("result", name, 1)) from exc
        return value

    def parse(self, name: str, text: str) -> object:
        """The value of ``name=text`` at a terminal: JSON where that fits, else the text itself where text does."""
        if self.kinds == ("str",):
            return self.check(name, text)
        try:
            return self.check(name, json.loads(text, parse_constant=_no_constant))
        except (ValueError, RecursionError, InvalidRequestError):
            try:
                return self.check(name, text)
            except InvalidRequestError:
                raise self._refuse(name, text) from None

    def _refuse(self, name: str, value: object, why: str = "") -> InvalidRequestError:
        free = [
            kind
            for kind in self.kinds
            if kind not in {KIND_OF.get(type(choice)) for choice in self.choices}
        ]
        wanted = " or ".join(
            filter(None, [", ".join(json.dumps(choice) for choice in self.choices), *free])
        )
        return InvalidRequestError(
            f"parameter {name} cannot be {_cut(value)}",
            why=why or f"it has to be {'one of ' if self.choices else ''}{wanted}",
            hint=f"--param {name}={json.dumps(self.default) if self.kinds != ('str',) else self.default}",
        )

    def to_json(self) -> dict[str, object]:
        """As the manifest keeps it."""
        return {
            "kinds": list(self.kinds),
            "choices": list(self.choices),
            "default": self.default,
            "place": self.place,
        }

    @classmethod
    def from_json(cls, data: dict) -> Param:
        """The inverse of :meth:`to_json`."""
        return cls(tuple(data["kinds"]), tuple(data["choices"]), data["default"], data["place"])


def _cut(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer past Python's digit limit, for one.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
