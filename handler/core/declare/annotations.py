"""What a parameter of a flow accepts, according to its annotation."""

from __future__ import annotations

import inspect
import types
import typing
from itertools import chain

from .params import KIND_OF

# The kinds and the choices of a parameter; see pfl.handler.core.declare.params.Param.
Accepted = tuple[tuple[str, ...], tuple[object, ...]]


def accepted(annotation: object, default: object) -> Accepted:
    """
    The kinds and the choices that an annotation allows.

    Args:
        annotation: The annotation; one that does not describe JSON allows any kind.
        default: The parameter's default; without an annotation, its kind is the one allowed.
    """
    if annotation is inspect.Parameter.empty and default is not None:
        annotation = type(default)
    if annotation is None:
        annotation = type(None)
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return accepted(arguments[0], default)
    if origin is typing.Literal:
        of_choices = [KIND_OF.get(type(choice), "any") for choice in arguments]
        return tuple(dict.fromkeys(of_choices)), arguments
    if origin in (typing.Union, types.UnionType):
        members = [accepted(each, default) for each in arguments]
        kinds = chain.from_iterable(kinds for kinds, _ in members)
        # ``Literal["auto"] | str`` allows any text.
        unlimited = {*chain.from_iterable(kinds for kinds, choices in members if not choices)}
        listed = chain.from_iterable(choices for _, choices in members)
        limited = (each for each in listed if KIND_OF.get(type(each)) not in unlimited)
        return tuple(dict.fromkeys(kinds)), tuple(limited)
    if isinstance(origin, type) and origin in KIND_OF:
        return (KIND_OF[origin],), ()
    return ("any",), ()
