"""
What one thing that is reached says and reads: functions, values, modules, steps. Classes have a file of their own.
"""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.collector import (
    MISSING,
    Collector,
    Location,
    Value,
    first_seen,
    is_instance,
    unwrap,
)
from pfl.handler.core.fingerprint.resolver import Resolver, statements
from pfl.handler.core.fingerprint.source import Source
from pfl.handler.core.fingerprint.values import Folder, Package, without_copied


def visit_function(collector: Collector, label: str, function: types.FunctionType) -> None:
    """Its source, what the names in it are bound to, its defaults and attributes."""
    code, names = function.__code__, function.__globals__
    source = collector.source(code.co_filename, names)
    nodes = source.function(code, function.__qualname__) if source else []
    location = Location(collector.codebase.relative(code.co_filename), code.co_firstlineno)
    if source is None or not nodes:
        collector.add_opaque(
            label,
            location,
            "there is no source; its bytecode counts, which differs between Python versions",
        )
        encoded = collector.encoder.top(code)
        collector.add_part(
            label,
            "function",
            location,
            [encoded.token, *map(collector.link, encoded.links)],
            f"<bytecode of {label}>",
        )
        return
    module = sys.modules.get(names.get("__name__", ""))
    module = (
        collector.module_info(module).module if is_instance(module, types.ModuleType) else None
    )  # anything may stand in its place
    unit = collector.analyse(source, nodes, names, body_only=True)
    items = [
        unit.text,
        *Resolver(collector, label, location.file, names, module, _cells(function, source)).resolve(
            unit
        ),
        *_defaults(collector, label, function, nodes[0].args, location),  # type: ignore[union-attr]
    ]
    for name, value in sorted(without_copied(vars(function))):
        if name not in ("__type_params__", "__isabstractmethod__"):
            items += [
                name,
                collector.bind(
                    label, name, "constant", first_seen(function, name, value), location
                ),
            ]
    text = "\n".join(source.text_of(node) for node in nodes)
    collector.add_part(label, "function", location._replace(line=nodes[0].lineno), items, text)


def _cells(function: types.FunctionType, source: Source) -> dict[str, Any]:
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            value = MISSING
        cells[name] = first_seen(cell, "", value) if name in source.reassigned else value
    return cells


def _defaults(
    collector: Collector,
    label: str,
    function: types.FunctionType,
    args: ast.arguments,
    location: Location,
) -> Iterator[str]:
    """Default values, but for those that the source says by themselves."""
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    values = function.__defaults__ or ()
    held = dict(zip(names[len(names) - len(values) :], values, strict=True)) | (
        function.__kwdefaults__ or {}
    )
    written = dict(zip(names[len(names) - len(args.defaults) :], args.defaults, strict=True))
    written |= {
        arg.arg: node for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True) if node
    }
    for name, value in held.items():
        node = written.get(name)
        if not (
            isinstance(node, ast.Constant)
            and type(node.value) is type(value)
            and node.value == value
        ):
            where = Location(
                location.file,
                node and node.lineno,
                (node,) if node else (),
                sys.modules.get(function.__module__ or ""),
            )
            yield name
            yield collector.bind(label, name, "default", value, where)


def visit_value(collector: Collector, label: str, item: Value) -> None:
    """Its content; where that says too little, the statements that make it, too."""
    encoded, text = collector.encode_value(item)
    made = collector.creators.get(label, item.location)
    items = [
        encoded.token,
        *(
            collector.link(each, item.location if item.location.nodes else made)
            for each in encoded.links
        ),
    ]
    if encoded.unknowns:
        for location in dict.fromkeys((item.location, made)):
            items += statements(collector, label, location, without=item.name)
        if not (item.location.nodes or made.nodes) and any(
            not reason for reason in encoded.unknowns
        ):
            collector.add_opaque(label, item.location, "its state cannot be known")
        for reason in filter(None, encoded.unknowns):
            collector.add_opaque(label, item.location, reason)
    collector.add_part(
        label, item.kind, item.location, items, item.value if item.kind == "python" else text
    )


def visit_module(collector: Collector, label: str, module: types.ModuleType) -> None:
    """A module of which anything may be asked: every name that it binds itself."""
    location = Location(collector.module_info(module).file, 1)
    items = Resolver(collector, label, location.file, vars(module), module).members_of(module)
    text = "\n".join(items[::2])
    if "text" in collector.extras and (source := collector.module_info(module).source) is not None:
        items += source.lines
    collector.add_part(label, "module", location, items, text)


def visit_package(collector: Collector, label: str, package: Package) -> None:
    """Name and version; none of its code."""
    collector.add_part(label, "package", Location(), package, package.version)


def visit_folder(collector: Collector, label: str, folder: Folder) -> None:
    """What its files say, of which any may be read; of a folder that holds the whole project, nothing."""
    path = os.path.normpath(os.path.join(collector.codebase.root, folder.name))
    if f"{collector.codebase.root}{os.sep}".startswith(f"{path}{os.sep}"):
        return collector.add_opaque(
            label, Location(folder.name, 1), "reads files of this folder at run time"
        )
    collector.link(_files_at(collector, path, endings=(".py", ".pyc")))


def visit_step(collector: Collector, label: str, step: Any) -> None:
    """Its function, and what its author declares."""
    function = step.function
    location = Location(
        collector.codebase.relative(function.__code__.co_filename), function.__code__.co_firstlineno
    )
    items = [collector.link(function, collector.creators.get(label))]
    if (version := getattr(step, "version", None)) is not None:
        items.append(
            collector.link(
                Value(
                    (id(step), "version"),
                    f"{function.__qualname__}.version",
                    "declared",
                    str(version),
                    location,
                )
            )
        )
    for position, item in enumerate(getattr(step, "depends_on", ()) or ()):
        name = f"{function.__qualname__}.depends_on[{position}]"
        if isinstance(item, os.PathLike):
            items.append(
                collector.link(_declared_file(collector, os.fspath(item), function, location))
            )
        elif (
            isinstance(item, str)
            and item
            and (found := _located(collector, item, function)) is not None
        ):
            raise InvalidRequestError(
                f"step `{function.__name__}` depends on the text {item!r}, which names {'a file' if os.path.isfile(found) else 'a folder'}",
                why=f"declared in {location.file}:{location.line}; of a text only its letters count",
                hint=f"depends_on=[Path({item!r})] counts the content; for text, version={item!r} or another wording",
            )
        else:
            value = Value(
                (id(function), position), name, "declared", item, location, is_lasting=False
            )
            items.append(collector.code(item) or collector.link(value))
    collector.add_part(label, "declared", location, items, " ".join(items))


def _located(collector: Collector, path: str, function: types.FunctionType) -> str | None:
    folders = (os.path.dirname(function.__code__.co_filename), collector.codebase.root, os.getcwd())
    return next(
        (place_ for folder in folders if os.path.exists(place_ := os.path.join(folder, path))), None
    )


def _declared_file(
    collector: Collector, path: str, function: types.FunctionType, location: Location
) -> Value:
    found = _located(collector, path, function)
    if found is None:
        raise InvalidRequestError(
            f"step `{function.__name__}` depends on a file that is not there",
            why=f"{path}, declared in {location.file}:{location.line}",
            hint="name it relative to the step's file or to the project's root",
        )
    return _files_at(collector, found)


def _files_at(collector: Collector, found: str, endings: tuple[str, ...] = ()) -> Value:
    """The content of a file, or of all files below a folder, without those of some *endings*."""
    content = {}
    if os.path.isdir(found):
        collector.files.update(
            os.path.abspath(path) for path, _, _ in os.walk(found) if "__pycache__" not in path
        )
    for each in [found] if os.path.isfile(found) else _files_below(found):
        if each.endswith(endings):
            continue
        collector.files.add(os.path.abspath(each))
        content[os.path.relpath(each, found).replace(os.sep, "/")] = ownership.content_of(each)
    name = collector.codebase.relative(found) or found
    return Value(("file", found), name, "declared", content, Location(name), is_lasting=False)


def _files_below(folder: str) -> Sequence[str]:
    walked = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    return sorted(path for path in walked if "__pycache__" not in path)


def visit_callable(collector: Collector, label: str, item: Any) -> None:
    """A partial, a cached function, an object that can be called: its value."""
    code = getattr(unwrap(item), "__code__", None)
    location = (
        Location(collector.codebase.relative(code.co_filename), code.co_firstlineno)
        if code
        else Location()
    )
    visit_value(collector, label, Value((id(item),), label, "constant", item, location))
