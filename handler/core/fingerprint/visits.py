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
from pfl.handler.core.fingerprint.names import Names, statements
from pfl.handler.core.fingerprint.reading import (
    MISSING,
    Reading,
    Spot,
    Value,
    isa,
    plain,
    remembered,
)
from pfl.handler.core.fingerprint.source import Source
from pfl.handler.core.fingerprint.values import Folder, Package, own


def visit_function(reading: Reading, label: str, function: types.FunctionType) -> None:
    """Its source, what the names in it are bound to, its defaults and attributes."""
    code, names = function.__code__, function.__globals__
    source = reading.source(code.co_filename, names)
    nodes = source.function(code, function.__qualname__) if source else []
    spot = Spot(reading.home.relative(code.co_filename), code.co_firstlineno)
    if source is None or not nodes:
        reading.doubt(
            label,
            spot,
            "there is no source; its bytecode counts, which differs between Python versions",
        )
        encoded = reading.encoder.top(code)
        reading.part(
            label,
            "function",
            spot,
            [encoded.token, *map(reading.link, encoded.links)],
            f"<bytecode of {label}>",
        )
        return
    module = sys.modules.get(names.get("__name__", ""))
    module = (
        reading.about(module).module if isa(module, types.ModuleType) else None
    )  # anything may stand in its place
    unit = reading.unit(source, nodes, names, body_only=True)
    items = [
        unit.text,
        *Names(reading, label, spot.file, names, module, _cells(function, source)).resolve(unit),
        *_defaults(reading, label, function, nodes[0].args, spot),  # type: ignore[union-attr]
    ]
    for name, value in sorted(own(vars(function))):
        if name not in ("__type_params__", "__isabstractmethod__"):
            items += [
                name,
                reading.bind(label, name, "constant", remembered(function, name, value), spot),
            ]
    text = "\n".join(source.text_of(node) for node in nodes)
    reading.part(label, "function", spot._replace(line=nodes[0].lineno), items, text)


def _cells(function: types.FunctionType, source: Source) -> dict[str, Any]:
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            value = MISSING
        cells[name] = remembered(cell, "", value) if name in source.rebound else value
    return cells


def _defaults(
    reading: Reading, label: str, function: types.FunctionType, args: ast.arguments, spot: Spot
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
            where = Spot(
                spot.file,
                node and node.lineno,
                (node,) if node else (),
                sys.modules.get(function.__module__ or ""),
            )
            yield name
            yield reading.bind(label, name, "default", value, where)


def visit_value(reading: Reading, label: str, item: Value) -> None:
    """Its content; where that says too little, the statements that make it, too."""
    encoded, text = reading.encoded(item)
    made = reading.made.get(label, item.spot)
    items = [
        encoded.token,
        *(reading.link(each, item.spot if item.spot.nodes else made) for each in encoded.links),
    ]
    if encoded.doubts:
        for spot in dict.fromkeys((item.spot, made)):
            items += statements(reading, label, spot, without=item.name)
        if not (item.spot.nodes or made.nodes) and any(not reason for reason in encoded.doubts):
            reading.doubt(label, item.spot, "its state cannot be known")
        for reason in filter(None, encoded.doubts):
            reading.doubt(label, item.spot, reason)
    reading.part(label, item.kind, item.spot, items, item.value if item.kind == "python" else text)


def visit_module(reading: Reading, label: str, module: types.ModuleType) -> None:
    """A module of which anything may be asked: every name that it binds itself."""
    spot = Spot(reading.about(module).file, 1)
    items = Names(reading, label, spot.file, vars(module), module).members_of(module)
    text = "\n".join(items[::2])
    if "text" in reading.asked and (source := reading.about(module).source) is not None:
        items += source.lines
    reading.part(label, "module", spot, items, text)


def visit_package(reading: Reading, label: str, package: Package) -> None:
    """Name and version; none of its code."""
    reading.part(label, "package", Spot(), package, package.version)


def visit_folder(reading: Reading, label: str, folder: Folder) -> None:
    """What its files say, of which any may be read; of a folder that holds the whole project, nothing."""
    path = os.path.normpath(os.path.join(reading.home.root, folder.name))
    if f"{reading.home.root}{os.sep}".startswith(f"{path}{os.sep}"):
        return reading.doubt(label, Spot(folder.name, 1), "reads files of this folder at run time")
    reading.link(_files_at(reading, path, endings=(".py", ".pyc")))


def visit_step(reading: Reading, label: str, step: Any) -> None:
    """Its function, and what its author declares."""
    function = step.function
    spot = Spot(
        reading.home.relative(function.__code__.co_filename), function.__code__.co_firstlineno
    )
    items = [reading.link(function, reading.made.get(label))]
    if (version := getattr(step, "version", None)) is not None:
        items.append(
            reading.link(
                Value(
                    (id(step), "version"),
                    f"{function.__qualname__}.version",
                    "declared",
                    str(version),
                    spot,
                )
            )
        )
    for position, item in enumerate(getattr(step, "depends_on", ()) or ()):
        name = f"{function.__qualname__}.depends_on[{position}]"
        if isinstance(item, os.PathLike):
            items.append(reading.link(_declared_file(reading, os.fspath(item), function, spot)))
        elif (
            isinstance(item, str)
            and item
            and (found := _located(reading, item, function)) is not None
        ):
            raise InvalidRequestError(
                f"step `{function.__name__}` depends on the text {item!r}, which names {'a file' if os.path.isfile(found) else 'a folder'}",
                why=f"declared in {spot.file}:{spot.line}; of a text only its letters count",
                hint=f"depends_on=[Path({item!r})] counts the content; for text, version={item!r} or another wording",
            )
        else:
            value = Value((id(function), position), name, "declared", item, spot, lasts=False)
            items.append(reading.code(item) or reading.link(value))
    reading.part(label, "declared", spot, items, " ".join(items))


def _located(reading: Reading, path: str, function: types.FunctionType) -> str | None:
    folders = (os.path.dirname(function.__code__.co_filename), reading.home.root, os.getcwd())
    return next(
        (place_ for folder in folders if os.path.exists(place_ := os.path.join(folder, path))), None
    )


def _declared_file(reading: Reading, path: str, function: types.FunctionType, spot: Spot) -> Value:
    found = _located(reading, path, function)
    if found is None:
        raise InvalidRequestError(
            f"step `{function.__name__}` depends on a file that is not there",
            why=f"{path}, declared in {spot.file}:{spot.line}",
            hint="name it relative to the step's file or to the project's root",
        )
    return _files_at(reading, found)


def _files_at(reading: Reading, found: str, endings: tuple[str, ...] = ()) -> Value:
    """The content of a file, or of all files below a folder, without those of some *endings*."""
    content = {}
    if os.path.isdir(found):
        reading.files.update(
            os.path.abspath(path) for path, _, _ in os.walk(found) if "__pycache__" not in path
        )
    for each in [found] if os.path.isfile(found) else _files_below(found):
        if each.endswith(endings):
            continue
        reading.files.add(os.path.abspath(each))
        content[os.path.relpath(each, found).replace(os.sep, "/")] = ownership.content_of(each)
    name = reading.home.relative(found) or found
    return Value(("file", found), name, "declared", content, Spot(name), lasts=False)


def _files_below(folder: str) -> Sequence[str]:
    walked = [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]
    return sorted(path for path in walked if "__pycache__" not in path)


def visit_callable(reading: Reading, label: str, item: Any) -> None:
    """A partial, a cached function, an object that can be called: its value."""
    code = getattr(plain(item), "__code__", None)
    spot = Spot(reading.home.relative(code.co_filename), code.co_firstlineno) if code else Spot()
    visit_value(reading, label, Value((id(item),), label, "constant", item, spot))
