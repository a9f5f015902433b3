"""
What a class is: its bases, its header as written, and what it holds in the end.
"""

from __future__ import annotations

import ast
import collections
import inspect
import sys
import types
from collections.abc import Iterable
from typing import Any

from handler.core.fingerprint import place
from handler.core.fingerprint.model import tagged
from handler.core.fingerprint.pieces import Pair, isa, remembered
from handler.core.fingerprint.source import Source, blocks, bound_by, docstring_of, first_line
from handler.core.fingerprint.unit import unquoted

_CLASS_NOISE = {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}
_ALWAYS_GENERATED = ("__pydantic", "_member_", "_value2member_", "_unhashable_values", "_hashable_values", "_sort_order_")
_TUPLE_GETTER = type(vars(collections.namedtuple("_", "x"))["x"])


class Classes:
    """The part of a reading that looks at classes; `Crawl` holds its state."""

    def _visit_class(self, label: str, klass: type) -> None:
        module = sys.modules.get(klass.__module__)
        module = module if module is not None and self._is_own(module) else None
        self._touch(module)
        source = self._source(module)
        node = self._class_node(source, klass)
        file = self.relative(place.file_of(module)) if module is not None else None
        items = [klass.__qualname__]
        for base in (*klass.__bases__, type(klass)):
            encoded = self.encoder.type(base)
            items += [encoded.token, *map(self.link, encoded.links)]
        text, line = klass.__qualname__, None
        if source is not None and node is not None:
            line = node.lineno
            items += self._header(label, klass, source, node, file, module)
            text = source.text_of(node, without=tuple(item for item in node.body if hasattr(item, "body")))
        items += self._members(label, klass, node, file, line, module)
        self._part(label, "class", file, line, tagged("class", *items), text)

    @staticmethod
    def _class_node(source: Source | None, klass: type) -> ast.ClassDef | None:
        found = [node for node in (source.defs.get(klass.__qualname__, ()) if source else ()) if isinstance(node, ast.ClassDef)]
        lines = {item.__code__.co_firstlineno for item in vars(klass).values() if isinstance(item, types.FunctionType)}
        said = vars(klass).get("__firstlineno__")
        fits = [node for node in found if said == first_line(node) or any(node.lineno <= n <= (node.end_lineno or 0) for n in lines)]
        return (fits or found or [None])[-1]  # type: ignore[list-item]

    def _header(
        self, label: str, klass: type, source: Source, node: ast.ClassDef, file: str | None, module: types.ModuleType | None
    ) -> list[str]:
        """Decorators, bases and keywords as written, and, unless the class is plain, its annotated fields."""
        pieces: list[ast.AST] = [*node.decorator_list, *node.bases, *node.keywords]
        if pieces or type(klass) is not type or self.options.annotations:
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    pieces += [item.target, unquoted(item.annotation)]  # type: ignore[list-item]
        unit = self._unit(source, pieces, self.options)
        if self.options.docs and (doc := docstring_of(node)) is not None:
            unit = unit._replace(text=unit.text + inspect.cleandoc(doc.value.value))  # type: ignore[attr-defined]
        names = vars(module) if module is not None else {}
        known = {**vars(klass), **names}
        return [unit.text, *self._resolve(unit, label, file, known, {}, module)]

    def _members(
        self,
        label: str,
        klass: type,
        node: ast.ClassDef | None,
        file: str | None,
        line: int | None,
        module: types.ModuleType | None,
    ) -> list[str]:
        written: dict[str, list[ast.stmt]] = {}
        for statement in node.body if node is not None else ():
            for name in _bound_in_class(statement):
                written.setdefault(name, []).append(statement)
        source = self._source(module)
        items: list[str] = []
        for name, value in sorted(self._own_members(klass, set(written)).items()):
            if source is not None and name in source.rebound:
                value = remembered(klass, name, value)
            nodes = tuple(written.get(name, ()))
            at = nodes[0].lineno if nodes else line
            items += [name, self._bind(label, name, "constant", value, file, at, nodes, module)]
        return items

    def _own_members(self, klass: type, written: set[str]) -> dict[str, Any]:
        """What a class holds, without what Python and the makers of dataclasses, enums and models derive from it."""
        members = dict(vars(klass))
        generated = self._generated(klass)
        kept: dict[str, Any] = {}
        if "__dataclass_fields__" in members:
            names = ("name", "default", "default_factory", "init", "repr", "hash", "compare", "kw_only", "metadata")
            fields = members["__dataclass_fields__"].values()
            kept["(fields)"] = [[str(field._field_type), *(_field(field, name) for name in names)] for field in fields]
            params = members.get("__dataclass_params__")
            kept["(params)"] = [getattr(params, name, None) for name in ("init", "repr", "eq", "order", "unsafe_hash", "frozen")]
        if "__attrs_attrs__" in members:
            names = ("name", "default", "validator", "converter", "init", "repr", "eq", "order", "hash", "kw_only", "alias")
            kept["(fields)"] = [[getattr(field, name, None) for name in names] for field in members["__attrs_attrs__"]]
        if isinstance(models := members.get("__pydantic_fields__"), dict):
            names = ("default", "default_factory", "metadata", "alias")
            kept["(fields)"] = [[key, *(_field(item, name) for name in names)] for key, item in models.items()]
        if issubclass(klass, tuple) and "_fields" in members:
            kept["(fields)"] = [members["_fields"], members.get("_field_defaults")]
        if isinstance(enum := members.get("_member_map_"), dict):
            state = {name: (item._value_, _plain_state(item)) for name, item in enum.items()}
            kept |= {name: Pair(value, extra) if extra else value for name, (value, extra) in state.items()}
            kept["(members)"] = list(enum)
            members = {name: value for name, value in members.items() if name not in enum and not isa(value, klass)}
        for name, value in members.items():
            if name in ("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__slots__"):
                if name != "__slots__" or "__slots__" not in written:
                    continue
            if name in _CLASS_NOISE or name.startswith(_ALWAYS_GENERATED):
                continue
            if isa(value, types.MemberDescriptorType | types.GetSetDescriptorType | _TUPLE_GETTER):
                continue
            is_theirs = name in written or self._is_project_code(value)
            if (name.startswith("__") and name.endswith("__") or generated) and not is_theirs:
                if not (generated == "data" and not callable(value) and not name.startswith("_")):
                    continue
            kept[name] = value
        return kept

    def _generated(self, klass: type) -> str:
        """Whether a maker of classes wrote some members: enum, namedtuple, protocol, model."""
        if "_member_map_" in vars(klass) or vars(klass).get("_is_protocol", False):
            return "code"
        if issubclass(klass, tuple) and "_fields" in vars(klass):
            return "code"
        return "data" if "__pydantic_fields__" in vars(klass) else ""

    def _is_project_code(self, value: Any) -> bool:
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isa(value, type):
            return self.encoder.kind_of_class(value) == place.PROJECT
        code = getattr(value, "__code__", None)
        return code is not None and self.kind_of_file(code.co_filename) == place.PROJECT


def _bound_in_class(node: ast.stmt) -> Iterable[str]:
    yield from bound_by(node)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for block in blocks(node):
            for inner in block:
                yield from _bound_in_class(inner)


def _field(field: Any, name: str) -> Any:
    value = getattr(field, name, None)
    return None if type(value).__name__ in ("_MISSING_TYPE", "PydanticUndefinedType") else value


def _plain_state(member: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in sorted(vars(member).items()) if not name.startswith("_")]
