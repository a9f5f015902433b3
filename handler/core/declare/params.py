"""The parameters of a flow: what each accepts, from an event or a terminal."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..errors import InvalidRequestError, PflError
from ..store.values import round_trip

KIND_OF: dict[object, str] = {
    **{kind: kind.__name__ for kind in (bool, int, float, str, list, dict)},
    type(None): "null",
}


class Param(NamedTuple):
    """
    One parameter of a flow.

    Attributes:
        kinds: The kinds it accepts: ``int``, ``float``, ``str``, ``bool``, ``list``, ``dict``,
            ``null`` and ``any``.
        choices: The only values of their types that it accepts; other types are not limited.
        default: Its value if the event has none.
        location: File and line of the step that declares it.
    """

    kinds: tuple[str, ...]
    choices: tuple[object, ...]
    default: object
    location: str

    def check(self, name: str, value: object) -> object:
        """
        *value* as the key and the step receive it.

        An int for a float becomes a float, so 2 and 2.0 have one key.

        Raises:
            InvalidRequestError: The parameter does not accept it.
        """
        kind = KIND_OF.get(type(value), "other")
        wants_float = "float" in self.kinds and "int" not in self.kinds
        if type(value) is int and wants_float and abs(value) <= 2**53:
            value = float(value)
            kind = "float"
        if "any" not in self.kinds and kind not in self.kinds:
            raise self._refuse(name, value)
        choices = [choice for choice in self.choices if type(choice) is type(value)]
        if choices and value not in choices:
            raise self._refuse(name, value)
        # Other kinds may contain NaN or something that is not JSON, for which no key exists.
        if kind in ("str", "bool", "null"):
            return value
        try:
            return round_trip(value)[0]
        except PflError as exc:
            raise self._refuse(name, value, exc.why.replace("result", name, 1)) from exc

    def parse(self, name: str, text: str) -> object:
        """The value of ``name=text`` at a terminal: JSON if it fits, else the text if that fits."""
        if self.kinds == ("str",):
            return self.check(name, text)
        try:
            return self.check(name, json.loads(text, parse_constant=_refuse_constant))
        except (ValueError, RecursionError, InvalidRequestError):
            try:
                return self.check(name, text)
            except InvalidRequestError:
                raise self._refuse(name, text) from None

    def _refuse(self, name: str, value: object, why: str = "") -> InvalidRequestError:
        chosen = {KIND_OF.get(type(choice)) for choice in self.choices}
        accepted = [", ".join(json.dumps(choice) for choice in self.choices)]
        accepted += [kind for kind in self.kinds if kind not in chosen]
        if not why:
            prefix = "one of " if self.choices else ""
            why = f"it must be {prefix}{' or '.join(filter(None, accepted))}"
        example = self.default if self.kinds == ("str",) else json.dumps(self.default)
        return InvalidRequestError(
            f"parameter {name} cannot be {_shorten(value)}",
            why=why,
            hint=f"--param {name}={example}",
        )


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not print an integer this long.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
