"""
Reads one thing that the crawl has reached: a function, value, module or step.

Classes are in :mod:`pfl.handler.core.fingerprint.classes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from ..errors import InvalidRequestError
from .analysis import Unit, analyse
from .collector import Collector, Location, Value, unwrap
from .resolver import Resolver, statements
from .source import Read, text_of
from .values import closure_of, without_copied

NO_SOURCE = "it has no source: its bytecode counts, which differs between Python versions"


def visit_function(collector: Collector, function: FunctionType) -> None:
    """Add a function: its source, what the names in it are bound to, defaults and attributes."""
    code = function.__code__
    names = function.__globals__
    source = collector.source(code.co_filename, names)
    nodes = source.function(code, function.__qualname__) if source else []
    location = _location_of(collector, function)
    location = location._replace(module=collector.module_named(names.get("__name__", "")).module)
    cells = {
        name: collector.first_seen(cell, "", value) for name, cell, value in closure_of(function)
    }
    resolver = Resolver(collector, location, names, cells)
    if source is not None and nodes:
        unit = analyse(source, tuple(nodes))
        location = location._replace(line=nodes[0].lineno, nodes=tuple(nodes))
        touching = tuple(source.touching.get(function.__qualname__, ()))
        items = statements(collector, location._replace(nodes=touching))
    else:
        collector.add_opaque(location, NO_SOURCE)
        reads = dict.fromkeys(map(Read, code.co_names), code.co_firstlineno)
        unit = Unit(collector.encoder.top(code).token, (), reads, {}, {})
        items = []
    items += [unit.text, *resolver.resolve(unit)]
    for name, kind, value in _held_by(function):
        if kind == "constant":
            value = collector.first_seen(function, name, value)
        items += [name, collector.bind(name, kind, value, location)]
    text = "\n".join(map(text_of, nodes))
    collector.add_part("function", location, items, text)


def _location_of(collector: Collector, function: Any) -> Location:
    code = getattr(unwrap(function), "__code__", None)
    if code is None:
        return Location()
    return Location(collector.codebase.relative(code.co_filename), code.co_firstlineno)


def _held_by(function: FunctionType) -> Iterator[tuple[str, str, Any]]:
    """The defaults and the attributes of a function."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][-len(defaults) :]
    by_name = dict(zip(names, defaults, strict=False)) | (function.__kwdefaults__ or {})
    for name, value in by_name.items():
        yield name, "default", value
    for name, value in sorted(without_copied(vars(function))):
        if name not in ("__type_params__", "__isabstractmethod__"):
            yield name, "constant", value


def visit_value(collector: Collector, item: Value) -> None:
    """Add a value: its content and, if that is not enough, the statements that create it."""
    encoded, text = collector.encode_value(item)
    location = item.location
    creator = collector.creator or location
    origin = location if location.nodes else creator
    items = [encoded.token, *(collector.link(each, origin) for each in encoded.links)]
    if encoded.unknowns:
        for where in dict.fromkeys((location, creator)):
            items += statements(collector, where, at_import=False)
        for reason in encoded.unknowns:
            if reason or not origin.nodes:
                collector.add_opaque(location, reason or "its state cannot be read")
    if item.kind in ("package", "python"):
        text = item.value
    collector.add_part(item.kind, location, items, text)


def visit_module(collector: Collector, module: ModuleType) -> None:
    """Add a module of which anything may be read: each of its names, with what it is."""
    location = Location(collector.module_info(module).file, 1, (), module)
    names = [name for name in sorted(vars(module)) if name[:2] != "__" or name == "__getattr__"]
    resolver = Resolver(collector, location, vars(module))
    items = [f"{name} {resolver.follow(module, Read('', (name,)))}" for name in names]
    collector.add_part("module", location, items, "\n".join(names))


def visit_step(collector: Collector, item: Any) -> None:
    """Add a step: its function, and what its author declares."""
    function = item.function
    location = _location_of(collector, function)
    items = [collector.link(function, collector.creator)]
    name = function.__qualname__
    causes = {f"depends_on[{place}]": each for place, each in enumerate(item.depends_on or ())}
    if item.version is not None:
        causes["version"] = item.version
    for field, cause in causes.items():
        file = _find_file(collector, cause, function)
        if file is not None:
            items.append(collector.link_files(file))
            continue
        if isinstance(cause, os.PathLike):
            raise InvalidRequestError(
                f"step `{function.__name__}` depends on a file that does not exist",
                why=f"{cause}, declared in {location.file}:{location.line}",
                hint="write its path relative to the step's file or to the project's root",
            )
        value = Value(f"{name}.{field}", "declared", cause, location, (id(item), field))
        items.append(collector.reach(value))
    collector.add_part("declared", location, items, " ".join(items))


def _find_file(collector: Collector, path: Any, function: FunctionType) -> str | None:
    if path == "" or not isinstance(path, str | os.PathLike):
        return None
    folder = os.path.dirname(function.__code__.co_filename)
    folders = (folder, collector.codebase.root, os.getcwd())
    return next(filter(os.path.exists, (os.path.join(each, path) for each in folders)), None)


def visit_callable(collector: Collector, item: Any) -> None:
    """Add the value of a partial, a cached function or another callable object."""
    location = _location_of(collector, item)
    visit_value(collector, Value(collector.label, "constant", item, location))
