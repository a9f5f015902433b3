"""
What a class is: its bases, its header as written, and what it holds in the end.
"""

from __future__ import annotations

import ast
import collections
import sys
import types
from typing import Any

from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.canonical import unquoted
from pfl.handler.core.fingerprint.collector import Collector, Location, first_seen, is_instance
from pfl.handler.core.fingerprint.resolver import Resolver
from pfl.handler.core.fingerprint.source import Source, first_line

_CLASS_NOISE = {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}
_ALWAYS_GENERATED = (
    "__pydantic",
    "_member_",
    "_value2member_",
    "_unhashable_values",
    "_hashable_values",
    "_sort_order_",
)
_FIELD = (
    "default", "default_factory", "validator", "converter", "init", "repr", "hash", "eq", "order", "compare", "kw_only", "alias",
    "metadata", "_field_type", "eq_key", "order_key", "on_setattr", "validation_alias", "serialization_alias", "exclude", "exclude_if",
    "discriminator", "frozen", "validate_default", "init_var", "json_schema_extra",
)  # fmt: skip
_TUPLE_GETTER = type(vars(collections.namedtuple("_", "x"))["x"])


_KNOWN: dict[
    int, tuple[type, list[Any], list[tuple[str, Any]]]
] = {}  # holds what it has seen, so that no identity is given twice


def visit_class(collector: Collector, label: str, klass: type) -> None:
    """Its bases, decorators and members; its subclasses where something asks for them."""
    module = sys.modules.get(klass.__module__)
    module, kind, file, source = collector.module_info(
        module if is_instance(module, types.ModuleType) else None
    )
    if kind != ownership.PROJECT:
        module, file = None, None
    node = _node_of(source, klass)
    location = Location(file, node and node.lineno, (), module)
    items, text = [klass.__qualname__], klass.__qualname__
    for base in (*klass.__bases__, type(klass)):
        encoded = collector.encoder.top(base)
        items += [encoded.token, *map(collector.link, encoded.links)]
    if source is not None and node is not None:
        items += _header(collector, label, klass, source, node, location)
        text = source.text_of(
            node, without=tuple(item for item in node.body if hasattr(item, "body"))
        )
        if "text" in collector.extras:
            items.append(source.verbatim(node))
    written = _written(source, klass, node)
    for name, value in _members(collector.codebase, klass, written if node is not None else None):
        if source is not None and name in source.reassigned:
            value = first_seen(klass, name, value)
        nodes = tuple(written.get(name, ()))
        where = Location(location.file, nodes[0].lineno if nodes else location.line, nodes, module)
        items += [name, collector.bind(label, name, "constant", value, where)]
    collector.add_part(label, "class", location, items, text)
    if "subclasses" in collector.extras:
        for inner in sorted(
            type.__subclasses__(klass), key=lambda item: (item.__qualname__, item.__module__)
        ):
            collector.code(inner)


def _node_of(source: Source | None, klass: type) -> ast.ClassDef | None:
    found = [
        node
        for node in (source.defs.get(klass.__qualname__, ()) if source else ())
        if isinstance(node, ast.ClassDef)
    ]
    if len(found) > 1:  # several of one name: by the lines of its methods, or as 3.13 says
        lines = {
            item.__code__.co_firstlineno
            for item in vars(klass).values()
            if is_instance(item, types.FunctionType)
        }
        said = vars(klass).get("__firstlineno__")
        fits = [
            node
            for node in found
            if said == first_line(node)
            or any(node.lineno <= n <= (node.end_lineno or 0) for n in lines)
        ]
        found = fits or found
    return found[-1] if found else None


def _written(
    source: Source | None, klass: type, node: ast.ClassDef | None
) -> dict[str, list[ast.stmt]]:
    """The statements in the body of a class that bind each name."""
    if source is None or node is None:
        return {}
    if id(node) not in source.units:
        prefix, last = f"{klass.__qualname__}.", node.end_lineno or 0
        bound = {
            name.removeprefix(prefix): nodes
            for name, nodes in source.bindings.items()
            if name.startswith(prefix)
        }
        inside = {
            name: [each for each in nodes if node.lineno <= each.lineno <= last]
            for name, nodes in bound.items()
        }
        source.units[id(node)] = {
            name: nodes for name, nodes in inside.items() if nodes and "." not in name
        }
    found: dict[str, list[ast.stmt]] = source.units[id(node)]
    return found


def _header(
    collector: Collector,
    label: str,
    klass: type,
    source: Source,
    node: ast.ClassDef,
    location: Location,
) -> list[str]:
    """Decorators, bases and keywords as written, and, unless the class is plain, its annotated fields."""
    pieces: list[ast.AST] = [*node.decorator_list, *node.bases, *node.keywords]
    if pieces or type(klass) is not type or "annotations" in collector.extras:
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                pieces += [item.target, unquoted(item.annotation)]
                if (
                    "docs" in collector.extras and item.value is not None
                ):  # ``Field(description="…")``
                    pieces.append(item.value)
    names = vars(location.module) if location.module is not None else {}
    unit = collector.analyse(source, pieces, names)
    said = (ast.get_docstring(node) or "") if "docs" in collector.extras else ""
    return [
        unit.text,
        said,
        *Resolver(
            collector, label, location.file, {**vars(klass), **names}, location.module
        ).resolve(unit),
    ]


def _members(
    codebase: ownership.Codebase, klass: type, written: dict[str, list[ast.stmt]] | None
) -> list[tuple[str, Any]]:
    """What `_own_members` gives, by name: the same objects as long as the class holds the same."""
    held = list(vars(klass).values())
    known = _KNOWN.get(id(klass))
    if known is None or list(map(id, known[1])) != list(map(id, held)):
        known = _KNOWN[id(klass)] = (
            klass,
            held,
            sorted(_own_members(codebase, klass, written).items()),
        )
    return known[2]


def _own_members(
    codebase: ownership.Codebase, klass: type, written: dict[str, list[ast.stmt]] | None
) -> dict[str, Any]:
    """What a class holds, without what Python and the makers of dataclasses, enums and models derive from it."""
    members = dict(vars(klass))
    generated = _generated(klass)
    fields = (
        _FIELD if written is not None else (*_FIELD, "type", "annotation")
    )  # without source, nothing else says these
    written = written or {}
    kept: dict[str, Any] = {}
    for held in (
        "__dataclass_fields__",
        "__attrs_attrs__",
        "__pydantic_fields__",
        "__private_attributes__",
    ):
        if made := members.get(held):
            rows = (
                made.items() if isinstance(made, dict) else ((field.name, field) for field in made)
            )
            key = "(private)" if held == "__private_attributes__" else "(fields)"
            kept[key] = [[name, *(_field(field, what) for what in fields)] for name, field in rows]
    if (params := members.get("__dataclass_params__")) is not None:
        kept["(params)"] = [
            getattr(params, name)
            for name in ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
        ]
    if issubclass(klass, tuple) and "_fields" in members:
        kept["(fields)"] = [members["_fields"], members.get("_field_defaults")]
    if isinstance(enum := members.get("_member_map_"), dict):
        state = {name: (item._value_, _plain_state(item)) for name, item in enum.items()}
        kept |= {name: (value, extra) if extra else value for name, (value, extra) in state.items()}
        kept["(members)"] = list(enum)
        members = {
            name: value
            for name, value in members.items()
            if name not in enum and not is_instance(value, klass)
        }
    for name, value in members.items():
        if name in (
            "__module__",
            "__qualname__",
            "__doc__",
            "__dict__",
            "__weakref__",
            "__annotations__",
            "__slots__",
        ):
            if name != "__slots__" or "__slots__" not in written:
                continue
        if name in _CLASS_NOISE or name.startswith(_ALWAYS_GENERATED):
            continue
        if is_instance(
            value, types.MemberDescriptorType | types.GetSetDescriptorType | _TUPLE_GETTER
        ):
            continue
        is_theirs = name in written or _is_project_code(codebase, value)
        if (name.startswith("__") and name.endswith("__") or generated) and not is_theirs:
            if not (generated == "data" and not callable(value) and not name.startswith("_")):
                continue
        kept[name] = (
            value.__func__
            if name == "_generate_next_value_" and is_instance(value, staticmethod)
            else value
        )  # 3.12 wraps it
    return kept


def _generated(klass: type) -> str:
    """Whether a maker of classes wrote some members: enum, namedtuple, protocol, model."""
    if "_member_map_" in vars(klass) or vars(klass).get("_is_protocol", False):
        return "code"
    if issubclass(klass, tuple) and "_fields" in vars(klass):
        return "code"
    return "data" if "__pydantic_fields__" in vars(klass) else ""


def _is_project_code(codebase: ownership.Codebase, value: Any) -> bool:
    value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
    return codebase.owns(value)


def _field(field: Any, name: str) -> Any:
    value = getattr(field, name, None)
    if name == "_field_type":
        return str(value)
    return None if type(value).__name__ in ("_MISSING_TYPE", "PydanticUndefinedType") else value


def _plain_state(member: Any) -> list[tuple[str, Any]]:
    return [
        (name, value) for name, value in sorted(vars(member).items()) if not name.startswith("_")
    ]
