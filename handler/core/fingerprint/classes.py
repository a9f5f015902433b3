"""
What a class is: all statements of its body, those that touch it, and what it holds in the end.
"""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from .collector import Collector, Location, is_instance
from .normal import Definition
from .resolver import statements
from .source import Bindings, text_of

# Where the makers of classes keep the fields, with their defaults.
_FIELD_TABLES = ("__dataclass_fields__", "__attrs_attrs__", "__pydantic_fields__")
_DEFAULTS = ("name", "default", "default_factory")
_DESCRIPTORS = (
    MemberDescriptorType,
    GetSetDescriptorType,
    type(vars(collections.namedtuple("_", "x"))["x"]),
)


def visit_class(collector: Collector, klass: type) -> None:
    """Add a class: its bases, body and members; its subclasses if something uses them."""
    info = collector.module_named(klass.__module__)
    source = info.source
    location = Location(info.file, module=info.module) if source else Location()
    items = [*filter(None, map(collector.code, (*klass.__bases__, type(klass))))]
    texts: list[str] = []
    written: Bindings = {}
    if source is not None:
        written = source.bindings.get(f"{klass.__qualname__}.", {})
        pieces = [*source.touching.get(klass.__qualname__, ())]
        named = source.defs.get(klass.__qualname__, ())
        definitions = [node for node in named if isinstance(node, ast.ClassDef)]
        if len(definitions) > 1:
            # What decides which it is.
            pieces += source.statements_of(klass.__qualname__)
        for node in definitions:
            # What is a part of its own: plain methods.
            body = tuple(each for each in node.body if not _is_method(each, klass))
            pieces += (*node.decorator_list, *node.bases, *node.keywords, *body)
            location = location._replace(line=node.lineno)
            # A name of its body that the body reads is a member, see below.
            texts.append(text_of(node, tuple(each for each in body if not _is_member(each, klass))))
        items += statements(collector, location._replace(nodes=tuple(pieces)))
    if not texts and collector.creator is not None:
        items += statements(collector, collector.creator)
    for name, value in sorted(dict(_members(collector, klass, written)).items()):
        if source is not None and name in source.reassigned:
            value = collector.first_seen(klass, name, value)
        where = location
        if nodes := written.get(name):
            where = location._replace(line=nodes[0].lineno, nodes=tuple(nodes))
        items += [name, collector.bind(name, "constant", value, where)]
    collector.add_part("class", location, items, "\n".join(texts) or klass.__qualname__)
    if "subclasses" in collector.extras:
        subclasses: list[type] = type.__subclasses__(klass)
        for each in sorted(subclasses, key=type.__repr__):
            collector.code(each)


def _is_method(item: ast.stmt, klass: type) -> bool:
    """Whether a statement of the body makes a function or class that the class holds as it is."""
    if not isinstance(item, Definition) or item.decorator_list:
        return False
    held = _without_static(vars(klass).get(item.name))
    return is_instance(held, FunctionType | type)


def _is_member(item: ast.stmt, klass: type) -> bool:
    """Whether a statement of the body only sets attributes, whose values are shown."""
    targets = item.targets if isinstance(item, ast.Assign) else [item]
    return all(getattr(each, "id", "") in vars(klass) for each in targets)


def _members(collector: Collector, klass: type, written: Bindings) -> Iterator[tuple[str, Any]]:
    """What a class holds, without what Python and the makers of classes derive from its body."""
    members = vars(klass)
    enum = members.get("_member_map_", {})
    for table in _FIELD_TABLES:
        if fields := members.get(table):
            fields = list(fields.values()) if isinstance(fields, dict) else fields
            yield (
                table,
                [getattr(field, name, None) for field in fields for name in _DEFAULTS],
            )
    # A member that is read may change the class.
    for name, value in list(members.items()):
        value = _without_static(value)
        inner = collector.code_behind(value.fget if is_instance(value, property) else value)
        if name in enum:
            yield name, enum[name]._value_
        elif is_instance(value, _DESCRIPTORS):
            continue
        elif name[0] != "_" or name in written or collector.owns(inner):
            yield name, value


def _without_static(value: Any) -> Any:
    """A member without the wrapper that enum adds from Python 3.12 on."""
    return value.__func__ if is_instance(value, staticmethod) else value
