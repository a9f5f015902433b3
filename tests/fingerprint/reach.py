"""
What a function can reach, found by names alone: the measure that ``histories.py`` uses.

It shares nothing with the fingerprint. A project is read as units: each function, each method, the
rest of each class, and each other statement at module level. A unit reaches what it names. A name
of a module means that module's units of this name, also through imports; an attribute means each
method of this name of each class that is reached, and the unit of this name in each module that is
reached as a whole. Docstrings, comments, annotations and ``pass`` are left out, so units are equal
if these are all that differs.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)
# With a name that is not in the source.
CHOOSERS = {"getattr", "globals", "vars", "locals", "__import__", "import_module", "eval", "exec"}


class Stripper(ast.NodeTransformer):
    """Takes out what never changes what code does, unless it is read."""

    def __init__(self) -> None:
        self.is_class = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, _: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> object:
        self.generic_visit(node)
        test = node.test
        name = getattr(test, "attr", "") or getattr(test, "id", "")
        return node.orelse if name == "TYPE_CHECKING" else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self.is_class:
            # A field: that it is there counts, its type does not.
            node.annotation = ast.Constant(None)
            return node
        return node.value and ast.Assign([node.target], node.value, lineno=node.lineno)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> object:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> object:
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> object:
        return self._inside(node, is_class=True)

    def _function(self, node: Function) -> object:
        names = {getattr(each, "attr", getattr(each, "id", "")) for each in node.decorator_list}
        if "overload" in names:
            return None
        node.returns = None
        return self._inside(node, is_class=False)

    def _inside(self, node: ast.AST, *, is_class: bool) -> object:
        outer, self.is_class = self.is_class, is_class
        self.generic_visit(node)
        self.is_class = outer
        return node


@dataclass
class Unit:
    """A piece of a module that is reached as a whole."""

    module: str
    name: str
    nodes: list[ast.AST] = field(default_factory=list)
    methods: dict[str, Unit] = field(default_factory=dict)
    is_class: bool = False

    @cached_property
    def text(self) -> str:
        """What counts of it."""
        return "\n".join(map(ast.dump, self.nodes))

    @cached_property
    def walked(self) -> list[ast.AST]:
        """All nodes in it."""
        return [each for node in self.nodes for each in ast.walk(node)]

    @cached_property
    def names(self) -> set[str]:
        """Names that it uses."""
        return {each.id for each in self.walked if isinstance(each, ast.Name)}

    @cached_property
    def attributes(self) -> set[str]:
        """Attributes that it uses, and texts that may be the name of one."""
        found = {each.attr for each in self.walked if isinstance(each, ast.Attribute)}
        for each in self.walked:
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                found.update(part for part in each.value.split(".") if part.isidentifier())
        return found

    @cached_property
    def texts(self) -> set[str]:
        """Texts in it that may be the name of a module."""
        constants = [each for each in self.walked if isinstance(each, ast.Constant)]
        return {each.value for each in constants if isinstance(each.value, str)}

    @cached_property
    def is_dynamic(self) -> bool:
        """Whether it chooses names while it runs."""
        for each in self.walked:
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Name | ast.Attribute):
                name = getattr(each.func, "attr", getattr(each.func, "id", ""))
                arguments = each.args[1:2] if name == "getattr" else each.args[:1]
                is_constant = bool(arguments) and isinstance(arguments[0], ast.Constant)
                if name in CHOOSERS and not is_constant:
                    return True
        return False

    @cached_property
    def imports(self) -> list[Import]:
        """Imports inside it."""
        return [item for each in self.walked for item in imports_of(each, self.module)]


@dataclass(frozen=True)
class Import:
    """``from module import name as local``; *name* is empty for a module as a whole."""

    local: str
    module: str
    name: str


class Module:
    """The units of one file."""

    def __init__(self, name: str, file: str, text: str, *, is_package: bool) -> None:
        self.name = name
        self.file = file
        self.units: dict[str, Unit] = {}
        self.imports: list[Import] = []
        # With their first and last line, decorators included.
        self.functions: list[tuple[int, int, str, str]] = []
        context = name if is_package else name.rpartition(".")[0]
        tree = ast.parse(text)
        Stripper().visit(tree)
        self._add_functions(tree, "")
        for node in tree.body:
            self._add(node, context)

    def _add_functions(self, tree: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, Function):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                last = node.end_lineno or first
                self.functions.append((first, last, f"{prefix}{node.name}", ast.dump(node)))
            elif isinstance(node, ast.ClassDef):
                self._add_functions(node, f"{prefix}{node.name}.")
            elif isinstance(node, BLOCKS):
                self._add_functions(node, prefix)

    def _add(self, node: ast.stmt, context: str) -> None:
        found = imports_of(node, context)
        self.imports += found
        if isinstance(node, Function):
            self.unit(node.name).nodes.append(node)
        elif isinstance(node, ast.ClassDef):
            self._add_class(node)
        elif isinstance(node, BLOCKS):
            self.imports += [item for each in ast.walk(node) for item in imports_of(each, context)]
            for name in {*bound_names(node), ""}:
                self.unit(name).nodes.append(node)
        elif not found:
            for name in bound_names(node) or {""}:
                self.unit(name).nodes.append(node)

    def _add_class(self, node: ast.ClassDef) -> None:
        unit = self.unit(node.name)
        unit.is_class = True
        methods = [each for each in node.body if isinstance(each, Function)]
        rest = [each for each in node.body if not isinstance(each, Function)]
        unit.nodes.append(
            ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list)
        )
        for method in methods:
            name = f"{node.name}.{method.name}"
            inner = unit.methods.setdefault(method.name, Unit(self.name, name))
            inner.nodes.append(method)

    def names(self) -> set[str]:
        """All names that it binds."""
        return {*self.units, *(item.local for item in self.imports)}

    def unit(self, name: str) -> Unit:
        """The unit that binds *name*; the empty name is that of statements that bind nothing."""
        return self.units.setdefault(name, Unit(self.name, name))


def bound_names(node: ast.AST) -> set[str]:
    """The names that a statement binds, or whose attributes and items it sets."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, Function | ast.ClassDef):
            found.add(each.name)
        targets = each.targets if isinstance(each, ast.Assign | ast.Delete) else []
        for target in [*targets, getattr(each, "target", None)]:
            for inner in ast.walk(target) if isinstance(target, ast.AST) else ():
                if isinstance(inner, ast.Name):
                    found.add(inner.id)
    return found


def imports_of(node: ast.AST, context: str) -> list[Import]:
    """What an import statement binds; *context* is the package of the module it is in."""
    if isinstance(node, ast.Import):
        return [
            Import(each.asname or each.name.partition(".")[0], each.name, "") for each in node.names
        ]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = context.split(".")
        package = ".".join(parts[: len(parts) - node.level + 1])
        base = f"{package}.{base}" if base else package
    return [Import(each.asname or each.name, base, each.name) for each in node.names]


class Project:
    """All modules below a folder from which they are imported."""

    def __init__(self, root: Path, checkout: Path) -> None:
        self.modules: dict[str, Module] = {}
        self.files: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            file = os.path.relpath(path, checkout)
            try:
                module = Module(name, file, path.read_text("utf-8"), is_package=is_package)
            except (SyntaxError, UnicodeDecodeError):
                continue
            self.modules[name] = self.files[file] = module

    def executed(self, places: Iterable[tuple[str, int, str]]) -> dict[tuple[str, str], str]:
        """The functions that contain code at *places*, and what counts of them."""
        found: dict[tuple[str, str], set[str]] = {}
        for file, line, _ in places:
            module = self.files.get(file)
            for first, last, name, text in module.functions if module else ():
                if first <= line <= last:
                    found.setdefault((file, name), set()).add(text)
        return {key: "\n".join(sorted(texts)) for key, texts in found.items()}

    def texts(self) -> set[str]:
        """What counts of each function."""
        return {text for module in self.files.values() for *_, text in module.functions}

    def reached(self, target: str, executed: Iterable[tuple[str, str]]) -> dict[str, str]:
        """
        What counts of each unit that a function reaches, by module and name.

        Args:
            target: ``MODULE:FUNCTION``.
            executed: File and name of functions that are known to run.
        """
        return Reach(self, target, executed).texts()


class Reach:
    """Follows names from one function until nothing new is found."""

    def __init__(self, project: Project, target: str, executed: Iterable[tuple[str, str]]) -> None:
        self.project = project
        self.units: dict[tuple[str, str], Unit] = {}
        self.modules: set[str] = set()
        self.whole: set[str] = set()
        self.resolved: set[tuple[str, str]] = set()
        self.imports: set[tuple[str, Import]] = set()
        module, _, name = target.partition(":")
        self.add_module(module)
        self.resolve(module, name)
        for file, path in executed:
            self.add_executed(project.files[file], path)
        size = -1
        while size != self.size():
            size = self.size()
            self.follow()

    def size(self) -> int:
        """How much is reached."""
        return len(self.units) + len(self.whole) + len(self.resolved)

    def texts(self) -> dict[str, str]:
        """What counts of each unit, and where each imported name leads."""
        units = {f"{module}:{name}": unit.text for (module, name), unit in self.units.items()}
        return units | {f"{module}: {item}": "" for module, item in self.imports}

    def add_executed(self, module: Module, path: str) -> None:
        """Reach a function that is known to run."""
        self.add_module(module.name)
        top, _, method = path.partition(".")
        self.resolve(module.name, top)
        if top in module.units and method in module.units[top].methods:
            self.add(module.units[top].methods[method])

    def follow(self) -> None:
        """Add what the units name."""
        units = list(self.units.values())
        attributes = {name for unit in units for name in unit.attributes}
        is_dynamic = any(unit.is_dynamic for unit in units)
        for unit in units:
            for name in unit.names:
                self.resolve(unit.module, name)
            for item in unit.imports:
                self.follow_import(item, unit.module)
            for text in unit.texts if is_dynamic else ():
                for module in [*packages_of(text), text]:
                    self.reach_whole(module)
            for name, method in unit.methods.items():
                if is_dynamic or name in attributes or name.startswith("__"):
                    self.add(method)
        for module in sorted(self.whole):
            names = self.project.modules[module].names() if is_dynamic else set()
            for name in sorted(names | attributes):
                self.resolve(module, name)

    def add(self, unit: Unit) -> None:
        """Reach a unit."""
        self.units[unit.module, unit.name] = unit

    def add_module(self, name: str) -> None:
        """Reach what a module, its packages and its imports do when they are imported."""
        module = self.project.modules.get(name)
        if module is None or name in self.modules:
            return
        self.modules.add(name)
        self.resolve(name, "")
        for package in packages_of(name):
            self.add_module(package)
        for item in module.imports:
            self.add_module(item.module)
            self.add_module(f"{item.module}.{item.name}")

    def resolve(self, module: str, name: str) -> None:
        """Reach what *name* means in a module."""
        found = self.project.modules.get(module)
        if found is None or (module, name) in self.resolved:
            return
        self.resolved.add((module, name))
        if name in found.units:
            self.add(found.units[name])
        if name:
            self.reach_whole(f"{module}.{name}")
        for item in found.imports:
            if item.name == "*":
                self.resolve(item.module, name)
            elif item.local == name:
                self.follow_import(item, module)

    def follow_import(self, item: Import, module: str) -> None:
        """Reach what an import binds."""
        self.imports.add((module, item))
        self.add_module(item.module)
        if item.name:
            self.resolve(item.module, item.name)
        else:
            # ``import a.b`` binds ``a``.
            for each in [*packages_of(item.module), item.module]:
                self.reach_whole(each)

    def reach_whole(self, module: str) -> None:
        """Reach a module as an object."""
        if module in self.project.modules:
            self.whole.add(module)
            self.add_module(module)


def packages_of(name: str) -> Iterator[str]:
    """``a`` and ``a.b`` of ``a.b.c``."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
