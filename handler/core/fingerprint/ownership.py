"""
Who owns a piece of code: the project, an installed package, the standard library, or pfl.

Only the project's code is read. An installed package counts by its name and version, found next to
its files, because asking ``importlib.metadata`` for all packages takes longer than a whole
fingerprint.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

PROJECT = "project"
INSTALLED = "installed"
STANDARD = "standard"
FRAMEWORK = "framework"
GENERATED = "generated"

_PFL = os.path.abspath(os.path.join(__file__, "../../../.."))
# Not the whole folder: in a checkout it also holds flows and tests.
_FRAMEWORK = tuple(
    os.path.join(_PFL, path)
    for path in ("__init__.py", f"cli{os.sep}", f"handler{os.sep}", f"serverless{os.sep}")
)
_STDLIB = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
_STDLIB_DIRS = tuple(os.path.join(path, "") for path in (*_STDLIB, *map(os.path.realpath, _STDLIB)))
_SITE_DIR = re.compile(r"[\\/](?:site|dist)-packages[\\/]")
_CHECKOUT_MARKS = ("pyproject.toml", ".git", "setup.py")
_OF_MACHINE = re.compile(rb"^\.\./|\.dist-info/|,,$")
# Py_TPFLAGS_HEAPTYPE: a class that Python code made.
_HEAP_TYPE = 1 << 9


class Codebase:
    """
    The project of one function: which code belongs to it, and how its files are named.

    Args:
        root: The folder from which its modules are imported.
        package: The function's package, with a separator at its end, or its file. It belongs to the
            project even if it is installed.
    """

    def __init__(self, root: str, package: str) -> None:
        self.root = root
        self._package = package
        roots = {root, _checkout_of(root) or root}
        # The root of a disk is too short to search for.
        names = [re.escape(path) for path in roots if len(path.strip(os.sep)) > 3]
        names.sort(key=len, reverse=True)
        self._roots = re.compile(f"(?:{'|'.join(names)})(?![\\w.-])") if names else None

    def is_in_package(self, path: str) -> bool:
        """Whether a file belongs to the package of the function."""
        return path.startswith(self._package)

    def kind_of_file(self, path: str) -> str:
        """The owner of a file."""
        return PROJECT if self.is_in_package(path) else kind_of_file(path)

    def kind_of_module(self, module: ModuleType) -> str:
        """The owner of a module."""
        file = file_of(module)
        return self.kind_of_file(file) if file else self.kind_of_name(module.__name__)

    def kind_of_name(self, name: str) -> str:
        """The owner of a module, imported or not; an unknown one counts as the project's."""
        if file := _location_of(name):
            return self.kind_of_file(file)
        return STANDARD if name.partition(".")[0] in sys.stdlib_module_names else PROJECT

    def kind_of_class(self, value: type) -> str:
        """The owner of a class."""
        # make_dataclass sets the module of its classes to ``types``.
        if value.__module__ == "types" and value.__flags__ & _HEAP_TYPE:
            return PROJECT
        return self.kind_of_name(value.__module__)

    def owns(self, value: Any) -> bool:
        """Whether a function or class is the project's; False for any other value."""
        # Not isinstance: a proxy may run code to answer that.
        kind = type(value)
        if issubclass(kind, FunctionType):
            return self.kind_of_file(value.__code__.co_filename) == PROJECT
        return issubclass(kind, type) and self.kind_of_class(value) == PROJECT

    def relative(self, file: str) -> str:
        """A path relative to the root, with ``/``; a name such as ``<string>`` as it is."""
        if not file or file.startswith("<"):
            return file
        return os.path.relpath(file, self.root).replace(os.sep, "/")

    def shorten(self, text: str) -> str:
        """*text* without the checkout's folder, so that it is equal in another checkout."""
        return self._roots.sub("<root>", text) if self._roots and os.sep in text else text


@functools.lru_cache(maxsize=256)
def codebase_of(file: str, module: str) -> Codebase:
    """The project of a function, given its file and the name of its module."""
    root = root_of(file, module)
    package = os.path.join(root, module.partition(".")[0], "")
    return Codebase(root, package if file.startswith(package) else file)


def _checkout_of(root: str) -> str | None:
    for _ in range(3):
        if any(os.path.exists(os.path.join(root, mark)) for mark in _CHECKOUT_MARKS):
            return root
        root = os.path.dirname(root)
    return None


@functools.cache
def kind_of_file(path: str) -> str:
    """The owner of a file; ``generated`` for a name such as ``<string>``."""
    if path.startswith("<frozen"):
        return STANDARD
    if path.startswith("<") or not path:
        return GENERATED
    path = os.path.abspath(path)
    if path.startswith(_FRAMEWORK):
        return FRAMEWORK
    if _SITE_DIR.search(path):
        return INSTALLED
    if path.startswith(_STDLIB_DIRS):
        return STANDARD
    return INSTALLED if _is_next_to_dist_info(path) else PROJECT


def _location_of(name: str) -> str | None:
    """The file or folder of a module or, if it is not imported, of its top-level package."""
    top = name.partition(".")[0]
    module = sys.modules.get(name) or sys.modules.get(top)
    if isinstance(module, ModuleType):
        return file_of(module)
    spec = spec_of(top)
    if spec is None:
        return None
    folders = spec.submodule_search_locations or ()
    return spec.origin if spec.has_location else next(iter(folders), None)


def spec_of(name: str) -> ModuleSpec | None:
    """Where a module would be imported from; None if it does not exist."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, SyntaxError, AttributeError):
        return None


def file_of(module: ModuleType) -> str | None:
    """A module's file, or the first folder of a namespace package."""
    names = vars(module)
    if isinstance(file := names.get("__file__"), str):
        return file
    try:
        return os.path.join(next(iter(names.get("__path__") or ())), "")
    except (StopIteration, TypeError):
        return None


def root_of(file: str, module: str) -> str:
    """The folder from which *module* is imported, given its file; else the file's folder."""
    folder, name = os.path.split(os.path.abspath(file))
    # A compiled one is called ``name.cpython-311.so``.
    name = name.partition(".")[0]
    stem = folder if name == "__init__" else os.path.join(folder, name)
    suffix = os.sep + module.replace(".", os.sep)
    return (stem.removesuffix(suffix) or os.sep) if stem.endswith(suffix) else folder


# Name and version of an installed package, and the files that tell the version.
Distribution = tuple[str, str, list[str]]


@functools.cache
def distribution_of(module: str) -> Distribution:
    """
    The package that installed *module*.

    Its version has a digest of the content if it was installed from a folder or an address, where
    one version may be anything. Without metadata, the version is its ``__version__`` or, without
    one, a digest of its source.
    """
    top = module.partition(".")[0]
    if module not in sys.modules:
        module = top
    file = _location_of(module) or ""
    root = root_of(file, module)
    # Several packages may share the folders of a namespace.
    if found := _installer_of(root, module) or _installer_of(root, top):
        return found
    if version := getattr(sys.modules.get(top), "__version__", None):
        return top, str(version), []
    inside = os.path.join(glob.escape(root), top, "**", "*.py")
    files = sorted(glob.glob(inside, recursive=True)) or [file] * os.path.isfile(file)
    return top, f"({_digest(map(content_of, files))})", files


def _digest(contents: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(contents)).hexdigest()[:16]


@functools.cache
def _dist_infos(root: str) -> list[str]:
    return sorted(glob.glob("*-*.dist-info", root_dir=root))


@functools.cache
def _installer_of(root: str, module: str) -> Distribution | None:
    """The package that put *module* into *root*: PyYAML for ``yaml``."""
    path = re.escape(module.replace(".", "/"))
    installed = re.compile(rf"^{path}(/|\.|,)".encode(), re.MULTILINE)
    # The package of this name comes first, because reading the records of all takes long.
    likely = module.partition(".")[0].lower()
    for folder in sorted(_dist_infos(root), key=lambda each: not each.lower().startswith(likely)):
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        path = os.path.join(root, folder, "RECORD")
        try:
            record = content_of(path)
        except OSError:
            record = f"{name},".encode()
        if installed.search(record):
            if os.path.exists(os.path.join(root, folder, "direct_url.json")):
                # Scripts and the address differ between machines.
                rows = [row for row in record.splitlines() if not _OF_MACHINE.search(row)]
                version += f" ({_digest(sorted(rows))})"
            return name.replace("_", "-"), version, [path]
    return None


def _is_next_to_dist_info(path: str) -> bool:
    """Whether a package put *path* there: a Lambda zip has packages next to the project."""
    for entry in sys.path:
        root = os.path.join(os.path.abspath(entry), "")
        if path.startswith(root) and _dist_infos(root):
            top = path.removeprefix(root).split(os.sep)[0].removesuffix(".py")
            return _installer_of(root, top) is not None
    return False


def content_of(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:
        return file.read()


def describe(error: BaseException, root: str | os.PathLike[str]) -> str:
    """An exception in one line, with the project's file and line that raised it."""
    message = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno or 0) for frame in frames]
    if isinstance(error, SyntaxError):
        # Its text repeats file and line.
        message = error.msg
        lines.append((error.filename or "", error.lineno or 0))
    places = [
        f" at {os.path.relpath(file, root)}:{line}"
        for file, line in lines
        if kind_of_file(file) == PROJECT
    ]
    return f"{type(error).__name__}: {message}".split("\n")[0].rstrip(": ") + "".join(places[-1:])
