"""
What a module does to others when it is imported: ``random.seed(3)``, ``READY = setup()``.

No name reads such a change, so each statement counts that may make one: it calls something of the
project, or it calls or sets something of a library without keeping the result.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from .collector import CODE, Collector, Location, SideEffects, is_instance, module_name_of
from .normal import Definition, dotted
from .resolver import statements
from .source import Globals, running, text_of
from .values import MISSING

# What does not decide what a program computes.
_SILENT = re.compile(
    r"(?:logging|typing|faulthandler)(?:\.|$)|builtins\.(?:print|vars|super|object)\b"
    r"|warnings\.warn(?:_explicit)?(?:\.|$)"
    r"|sys\.(?:path|stdin|stdout|stderr|exit|excepthook|displayhook|modules|argv"
    r"|dont_write_bytecode)(?:\.|$)"
)
# What these hold is a value that is read where it is used.
_CONTAINERS = ("builtins", "collections")
# Functions that are called to change something, also if their result is kept:
# ``old = locale.setlocale(…)``.
_SETTERS = re.compile(
    r"(?:seed|(?:un)?register|(?:un)?install|patch|configure|enable|disable|activate|use|setup"
    r"|init|reset|clear|add)(?:_|[A-Z]|$)|set(?!tings$)[a-z_]"
    r"|(?:chdir|umask|signal|alarm|load_dotenv)$"
)


def visit_side_effects(collector: Collector, effects: SideEffects) -> None:
    """Add the statements of a module that may change others; visit what it imports for effect."""
    module = effects.module
    info = collector.module_info(module)
    if info.source is None:
        return
    package = module.__name__.rpartition(".")[0]
    for name in filter(None, (package, *info.source.imported_for_effect)):
        collector.module_named(name)
    if info.source.effects is None:
        info.source.effects = (*_acting(collector, info.source.tree.body, vars(module)),)
    if nodes := info.source.effects:
        location = Location(info.file, getattr(nodes[0], "lineno", None), nodes, module)
        text = "\n".join(map(text_of, nodes))
        collector.add_part("module", location, statements(collector, location), text)


def _acting(collector: Collector, body: list[ast.stmt], names: Globals) -> Iterator[ast.AST]:
    for statement in body:
        finder = _Finder(collector, names)
        if isinstance(statement, Definition):
            yield from filter(finder.may_act, statement.decorator_list)
        if isinstance(statement, ast.ClassDef):
            yield from _acting(collector, statement.body, names)
            if finder.is_acting(type(names.get(statement.name))):
                yield from statement.keywords
        elif finder.any_acts(running(statement)):
            yield statement


@dataclass
class _Finder:
    """
    Finds what may change something that no name of the project holds.

    Args:
        collector: Has the sources of functions that are called.
        names: The globals of what is read.
        seen: Functions that were read already.
    """

    collector: Collector
    names: Globals
    seen: set[object] = field(default_factory=set)

    def any_acts(self, nodes: Iterable[ast.AST]) -> bool:
        """Whether one of *nodes* does, by itself or by the project's code that it calls."""
        nodes = list(nodes)
        alone = {each.value for each in nodes if isinstance(each, ast.Expr)}
        return any(self._acts(each, is_alone=each in alone) for each in nodes)

    def _acts(self, node: ast.AST, *, is_alone: bool) -> bool:
        is_call = isinstance(node, ast.Call)
        is_set = False
        if isinstance(node, ast.Attribute | ast.Subscript):
            is_set = not isinstance(node.ctx, ast.Load)
        root, attrs = dotted(node)
        if is_call and self.may_act(node):
            return True
        value = self._value(root)
        is_code = is_instance(value, CODE)
        if self.collector.owns(value if is_code else type(value)):
            return is_call and is_alone and is_code
        if value is MISSING:
            # In a function, it may be a part of a library.
            is_changed = is_set or (is_alone and _SETTERS.match((attrs or [""])[-1]))
            return bool(is_changed) and root != "self"
        module = module_name_of(value)
        if is_code and not is_instance(value, ModuleType):
            attrs.insert(0, value.__name__)
        path = ".".join((module or "", *attrs))
        if _SILENT.match(path) or (module in _CONTAINERS and not is_code):
            return False
        if is_call:
            return is_alone or _SETTERS.match(path.rpartition(".")[2]) is not None
        return is_set

    def may_act(self, node: ast.AST) -> bool:
        """Whether a call runs code of the project that does."""
        value = self._value(dotted(node)[0])
        if value is MISSING:
            # What a loop or a comprehension gives.
            return isinstance(getattr(node, "func", None), ast.Name)
        return self.is_acting(value)

    def is_acting(self, value: Any) -> bool:
        """Whether a function of the project, or a method of a class or instance, acts on others."""
        function = self.collector.code_behind(value)
        if function in self.seen or not self.collector.owns(function):
            return False
        self.seen.add(function)
        if is_instance(function, type):
            members = [each for base in function.__mro__ for each in vars(base).values()]
            return any(map(self.is_acting, members))
        source = self.collector.source(function.__code__.co_filename, function.__globals__)
        nodes = source.function(function.__code__, function.__qualname__) if source else []
        inside = replace(self, names=function.__globals__)
        return any(inside.any_acts(ast.walk(node)) for node in nodes)

    def _value(self, root: str) -> Any:
        return self.names.get(root, getattr(builtins, root, MISSING))
