"""
Where code lives: the project, an installed package, the standard library, or this framework.

Only project code is read. An installed package counts by name and version, found next to its files, because asking
``importlib.metadata`` for all packages takes longer than a whole fingerprint.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from types import FunctionType, ModuleType
from typing import Any

PROJECT, INSTALLED, STANDARD, FRAMEWORK, GENERATED = (
    "project",
    "installed",
    "standard",
    "framework",
    "generated",
)

_PACKAGE = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
# Not the whole folder: in a checkout it also holds flows, tests and whatever else a project keeps beside them.
_FRAMEWORK = tuple(
    os.path.join(_PACKAGE, name)
    for name in ("__init__.py", f"cli{os.sep}", f"handler{os.sep}", f"serverless{os.sep}")
)
_STDLIB_DIRS = tuple(
    {os.path.realpath(path) + os.sep for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))}
    | {path + os.sep for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))}
)
_SITE_DIR = re.compile(r"[\\/](?:site|dist)-packages[\\/]")
_CHECKOUT_MARKS = ("pyproject.toml", ".git", "setup.py")
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made while running


class Codebase:
    """
    The project of one function: what belongs to it, and what its files are called.

    Args:
        root: The folder from which its modules are imported.
        own: The function's package, with a separator at its end, or its file: the project's wherever it is installed.
    """

    def __init__(self, root: str, without_copied: str) -> None:
        self.root, self._own = root, without_copied
        self._relative: dict[str, str] = {}
        folders = {root, _checkout_of(root) or root}
        kept = sorted(
            (re.escape(folder) for folder in folders if len(folder.strip(os.sep)) > 3),
            key=len,
            reverse=True,
        )
        self._folders = re.compile(f"(?:{'|'.join(kept)})(?![\\w.-])") if kept else None

    def kind_of_file(self, path: str) -> str:
        """To whom a file belongs."""
        return PROJECT if path.startswith(self._own) else kind_of_file(path)

    def kind_of_module(self, module: ModuleType) -> str:
        """To whom a module belongs."""
        file = file_of(module)
        return self.kind_of_file(file) if file else kind_of_module(module.__name__)

    def kind_of_class(self, value: type) -> str:
        """To whom a class belongs; ``types`` is where make_dataclass puts what others make."""
        if value.__module__ == "types" and value.__flags__ & _HEAP_TYPE:
            return PROJECT
        module = sys.modules.get(value.__module__)
        return (
            self.kind_of_module(module)
            if isinstance(module, ModuleType)
            else kind_of_module(value.__module__)
        )

    def owns(self, value: Any) -> bool:
        """Whether a function, class or module is written in the project."""
        kind = type(value)
        if issubclass(kind, FunctionType):
            return self.kind_of_file(value.__code__.co_filename) == PROJECT
        if issubclass(kind, type):
            return self.kind_of_class(value) == PROJECT
        return issubclass(kind, ModuleType) and self.kind_of_module(value) == PROJECT

    def relative(self, file: str | None) -> str | None:
        """A path as people of the project know it."""
        if not file or file.startswith("<"):
            return file or None
        if file not in self._relative:
            self._relative[file] = os.path.relpath(os.path.abspath(file), self.root).replace(
                os.sep, "/"
            )
        return self._relative[file]

    def shorten(self, text: str) -> str:
        """*text* without the checkout's folder: a path below it is the same path in another checkout."""
        return self._folders.sub("<root>", text) if self._folders and os.sep in text else text


@functools.lru_cache(maxsize=256)
def codebase_of(file: str, module: str) -> Codebase:
    """The project of a function, given its file and the name of its module."""
    root = root_of(file, module)
    top = os.path.join(root, module.partition(".")[0]) + os.sep
    return Codebase(root, top if file.startswith(top) else file)


def _checkout_of(root: str) -> str | None:
    for _ in range(3):
        if any(os.path.exists(os.path.join(root, mark)) for mark in _CHECKOUT_MARKS):
            return root
        root = os.path.dirname(root)
    return None


@functools.lru_cache(maxsize=None)
def kind_of_file(path: str) -> str:
    """To whom a file belongs; a name such as ``<string>`` is ``generated``."""
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
    return INSTALLED if _beside_dist_info(path) else PROJECT


def kind_of_module(name: str) -> str:
    """To whom a module belongs, imported or not; an unknown one counts as the project's."""
    top = name.partition(".")[0]
    module = sys.modules.get(name) or sys.modules.get(top)
    file = file_of(module) if module is not None else None
    if file is None and module is None and top not in sys.stdlib_module_names:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError, AttributeError):
            spec = None
        if spec is not None:
            file = (
                spec.origin
                if spec.has_location
                else next(iter(spec.submodule_search_locations or ()), None)
            )
    if file is not None:
        return kind_of_file(file)
    return (
        STANDARD if top in sys.stdlib_module_names or top in sys.builtin_module_names else PROJECT
    )


def file_of(module: ModuleType) -> str | None:
    """A module's file, or a namespace package's first folder."""
    names = vars(module)
    if isinstance(file := names.get("__file__"), str):
        return file
    try:
        return os.path.join(next(iter(names.get("__path__") or ())), "")
    except (StopIteration, TypeError):
        return None


def root_of(file: str, module: str) -> str:
    """The folder from which *module* is imported, given its file; the file's own folder where they do not fit."""
    stem = os.path.splitext(os.path.abspath(file))[0]
    wanted = module.split(".")
    if os.path.basename(stem) == "__init__":
        stem = os.path.dirname(stem)
    parts = stem.split(os.sep)
    if parts[-len(wanted) :] == wanted:
        return os.sep.join(parts[: -len(wanted)]) or os.sep
    return os.path.dirname(os.path.abspath(file))


@functools.lru_cache(maxsize=None)
def distribution_of(module: str) -> tuple[str, str]:
    """
    Name and version of the package that installed *module*.

    Returns:
        Where no metadata is found: the module's top-level name and its ``__version__``, or "unknown".
    """
    top = module.partition(".")[0]
    loaded = sys.modules.get(module) or sys.modules.get(top)
    file = file_of(loaded) if loaded is not None else None
    if file is None:
        spec = importlib.util.find_spec(top)
        file = (
            (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
            if spec
            else None
        )
    if file is not None:
        sites = list(_SITE_DIR.finditer(file))
        root = (
            file[: sites[-1].end()]
            if sites
            else root_of(file, module if loaded is not None else top)
        )
        if found := _installer_of(root.rstrip(os.sep), top):
            return found
    version = vars(sys.modules[top]).get("__version__") if top in sys.modules else None
    return top, version if isinstance(version, str) else "unknown"


@functools.lru_cache(maxsize=None)
def _dist_infos(root: str) -> dict[str, tuple[str, str, str]]:
    found = {}
    try:
        entries = sorted(os.listdir(root))
    except OSError:
        entries = []
    for entry in entries:
        stem, ending = os.path.splitext(entry)
        if ending == ".dist-info" and "-" in stem:
            name, _, version = stem.partition("-")
            found[re.sub(r"[-_.]+", "_", name).lower()] = (name.replace("_", "-"), version, entry)
    return found


@functools.lru_cache(maxsize=None)
def _installer_of(root: str, top: str) -> tuple[str, str] | None:
    """Name and version of the package that put the top-level name *top* into *root*: yaml was put there by PyYAML."""
    infos = _dist_infos(root)
    likely = infos.get(re.sub(r"[-_.]+", "_", top).lower())
    for name, version, folder in [likely, *infos.values()] if likely else infos.values():
        if re.search(
            rf"^{re.escape(top)}(/|\.|,)", _read(os.path.join(root, folder, "RECORD")), re.MULTILINE
        ):
            return name, version
    return likely and likely[:2]


def _beside_dist_info(path: str) -> bool:
    """Whether a package put *path* beside its dist-info folder: in a Lambda zip, packages are beside the project."""
    for entry in sys.path:
        root = os.path.abspath(entry or os.getcwd())
        if path.startswith(root.rstrip(os.sep) + os.sep) and _dist_infos(root):
            top = os.path.relpath(path, root).split(os.sep)[0].removesuffix(".py")
            return _installer_of(root, top) is not None
    return False


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def content_of(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:
        return file.read()


def describe(error: BaseException, root: str | os.PathLike[str]) -> str:
    """An exception in one line, with the project's file, relative to *root*, and line where it came from."""
    file, line = None, 0
    if isinstance(error, SyntaxError):
        file, line, said = error.filename, error.lineno, error.msg  # its text repeats file and line
    else:
        for frame, number in traceback.walk_tb(error.__traceback__):
            if kind_of_file(frame.f_code.co_filename) == PROJECT:
                file, line = frame.f_code.co_filename, number
        said = str(error)
    where = f" at {os.path.relpath(file, root)}:{line}" if file and not file.startswith("<") else ""
    return f"{type(error).__name__}: {said}".split("\n")[0].rstrip(": ") + where
