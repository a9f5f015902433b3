"""
What a class is: its bases, its header as written, and what it holds in the end.
"""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from . import ownership
from .canonical import unquoted
from .collector import Collector, Location, first_seen, is_instance
from .resolver import Resolver
from .source import Bindings, Source, lines_of, text_of

# Members that Python, enum, typing and pydantic add.
_NOISE = re.compile(
    r"__doc__$|_abc_impl$|_is_(?:runtime_)?protocol$|__pydantic|_member_|_value2member_"
    r"|_(?:un)?hashable_values|_sort_order_"
)
_FIELD_TABLES = {
    "__dataclass_fields__": "(fields)",
    "__attrs_attrs__": "(fields)",
    "__pydantic_fields__": "(fields)",
    "__private_attributes__": "(private)",
}
# What counts of a field of dataclasses, attrs and pydantic.
_FIELD = (
    "default default_factory validator converter init repr hash eq order compare kw_only alias"
    " metadata _field_type eq_key order_key on_setattr validation_alias serialization_alias"
    " exclude exclude_if discriminator frozen validate_default init_var json_schema_extra"
).split()
_PARAMS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
_DESCRIPTORS = (
    MemberDescriptorType,
    GetSetDescriptorType,
    type(vars(collections.namedtuple("_", "x"))["x"]),
)


# By identity: the class and what it held, kept so that no identity is used twice, and its members.
_KNOWN: dict[tuple[int, ...], tuple[type, tuple[Any, ...], list[tuple[str, Any]]]] = {}


def visit_class(collector: Collector, klass: type) -> None:
    """Add a class: its bases, decorators and members; its subclasses if something uses them."""
    info = collector.module_named(klass.__module__)
    source = info.source
    location = Location(info.file, module=info.module) if source else Location()
    node = _node_of(source, klass) if source else None
    text = klass.__qualname__
    bases = map(collector.code, (*klass.__bases__, type(klass)))
    items = [text, *filter(None, bases)]
    written: Bindings = {}
    if source is not None and node is not None:
        location = location._replace(line=node.lineno)
        names = vars(location.module)
        unit = collector.analyse(source, _header(collector.extras, klass, node), names)
        doc = ast.get_docstring(node) if "docs" in collector.extras else None
        resolver = Resolver(collector, location, {**vars(klass), **names})
        items += [unit.text, doc or "", *resolver.resolve(unit)]
        text = text_of(source, node)
        if "text" in collector.extras:
            items.append(source.verbatim(node))
        written = _written(source, klass, node)
    for name, value in _members(collector.codebase, klass, written, has_source=node is not None):
        if source is not None and name in source.reassigned:
            value = first_seen(klass, name, value)
        where = location
        if nodes := written.get(name):
            where = location._replace(line=nodes[0].lineno, nodes=tuple(nodes))
        items += [name, collector.bind(name, "constant", value, where)]
    collector.add_part("class", location, items, text)
    if "subclasses" in collector.extras:
        subclasses: list[type] = type.__subclasses__(klass)
        for each in sorted(subclasses, key=lambda item: (item.__qualname__, item.__module__)):
            collector.code(each)


def _node_of(source: Source, klass: type) -> ast.ClassDef | None:
    found = source.defs.get(klass.__qualname__, ())
    nodes = [node for node in found if isinstance(node, ast.ClassDef)]
    # Several may have one name: the lines of the methods decide, and its own from Python 3.13.
    lines = {vars(klass).get("__firstlineno__")}
    for member in vars(klass).values():
        if is_instance(member, FunctionType):
            lines.add(member.__code__.co_firstlineno)
    fits = [node for node in nodes if not lines.isdisjoint(lines_of(node))]
    return next(reversed(fits or nodes), None)


def _written(source: Source, klass: type, node: ast.ClassDef) -> Bindings:
    """The statements in the body of a class that bind each name."""
    found: Bindings = {}
    lines = lines_of(node)
    for name in vars(klass):
        nodes = source.bindings.get(f"{klass.__qualname__}.{name}", ())
        if inside := [each for each in nodes if each.lineno in lines]:
            found[name] = inside
    return found


def _header(extras: frozenset[str], klass: type, node: ast.ClassDef) -> list[ast.AST]:
    """Decorators, bases, keywords as written and, unless the class is plain, annotated fields."""
    pieces: list[ast.AST] = [*node.decorator_list, *node.bases, *node.keywords]
    if pieces or type(klass) is not type or "annotations" in extras:
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                pieces += [item.target, unquoted(item.annotation)]
                # ``Field(description="…")``
                if "docs" in extras and item.value is not None:
                    pieces.append(item.value)
    return pieces


def _members(
    codebase: ownership.Codebase, klass: type, written: Bindings, *, has_source: bool
) -> list[tuple[str, Any]]:
    """A class's own members by name: the same objects while the class does not change."""
    held = tuple(vars(klass).values())
    key = (id(klass), *map(id, held))
    if key not in _KNOWN:
        members = dict(_tables(klass, has_source=has_source))
        members.update(_own_members(codebase, klass, written))
        _KNOWN[key] = (klass, held, sorted(members.items()))
    return _KNOWN[key][2]


def _tables(klass: type, *, has_source: bool) -> Iterator[tuple[str, Any]]:
    """What dataclasses, attrs, pydantic, namedtuple and enum store about a class's fields."""
    members = vars(klass)
    # Without source, these are known only from here.
    names = _FIELD if has_source else [*_FIELD, "type", "annotation"]
    for table, key in _FIELD_TABLES.items():
        if fields := members.get(table):
            if not isinstance(fields, dict):
                fields = {field.name: field for field in fields}
            yield (
                key,
                [
                    [name, *(_option(field, option) for option in names)]
                    for name, field in fields.items()
                ],
            )
    if (params := members.get("__dataclass_params__")) is not None:
        yield "(params)", [getattr(params, name) for name in _PARAMS]
    if issubclass(klass, tuple) and "_fields" in members:
        yield "(fields)", [members["_fields"], members.get("_field_defaults")]
    if isinstance(enum := members.get("_member_map_"), dict):
        yield "(members)", list(enum)
        for name, member in enum.items():
            if state := {key: item for key, item in vars(member).items() if key[0] != "_"}:
                yield f"{name}.(state)", state


def _own_members(
    codebase: ownership.Codebase, klass: type, written: Bindings
) -> Iterator[tuple[str, Any]]:
    """What a class holds, without what Python and the makers of classes derive from it."""
    members = vars(klass)
    generator = _generator_of(klass)
    enum = members.get("_member_map_", {})
    for name, value in members.items():
        if name in enum:
            yield name, enum[name]._value_
            continue
        if _NOISE.match(name) or is_instance(value, _DESCRIPTORS):
            continue
        # Before Python 3.13, an alias or a composed flag.
        if generator == "enum" and is_instance(value, klass):
            continue
        is_special = name.startswith("__") and name.endswith("__")
        if (is_special or generator) and name not in written:
            inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            is_default = generator == "pydantic" and not callable(value) and name[0] != "_"
            if not codebase.owns(inner) and not is_default:
                continue
        # Python 3.12 wraps it.
        is_wrapped = name == "_generate_next_value_" and is_instance(value, staticmethod)
        yield name, value.__func__ if is_wrapped else value


def _generator_of(klass: type) -> str:
    """What adds members to a class, if anything does."""
    members = vars(klass)
    if "_member_map_" in members:
        return "enum"
    if members.get("_is_protocol", False):
        return "protocol"
    if issubclass(klass, tuple) and "_fields" in members:
        return "namedtuple"
    return "pydantic" if "__pydantic_fields__" in members else ""


def _option(field: Any, name: str) -> Any:
    value = getattr(field, name, None)
    if name == "_field_type":
        return str(value)
    is_missing = type(value).__name__ in ("_MISSING_TYPE", "PydanticUndefinedType")
    return None if is_missing else value
