"""What a parameter of a flow accepts, according to its annotation."""

from __future__ import annotations

import inspect
import types
import typing

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
        kinds = [KIND_OF.get(type(choice), "any") for choice in arguments]
        return tuple(dict.fromkeys(kinds)), arguments
    if origin in (typing.Union, types.UnionType):
        return _join([accepted(each, default) for each in arguments])
    if isinstance(origin, type) and origin in KIND_OF:
        return (KIND_OF[origin],), ()
    return ("any",), ()


def _join(members: list[Accepted]) -> Accepted:
    """What a union of these allows: ``Literal["auto"] | str`` allows any text."""
    joined: list[str] = []
    listed: list[object] = []
    unlimited: set[str] = set()
    for kinds, choices in members:
        joined += kinds
        listed += choices
        if not choices:
            unlimited.update(kinds)
    listed = [choice for choice in listed if KIND_OF.get(type(choice)) not in unlimited]
    if listed and "null" in unlimited:
        listed.append(None)
    return tuple(dict.fromkeys(joined)), tuple(listed)
