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

from .collector import (
    CODE,
    Collector,
    Location,
    SideEffects,
    is_instance,
    module_name_of,
    unwrap,
)
from .normal import Definition, dotted, root_name
from .ownership import INSTALLED
from .resolver import statements
from .source import Globals, absolute, running, text_of
from .values import MISSING

# What does not decide what a program computes.
_SILENT = re.compile(
    r"(?:logging|typing|faulthandler)(?:\.|$)|builtins\.(?:print|vars|super|object)\b"
    r"|warnings\.warn(?:_explicit)?(?:\.|$)"
    r"|sys\.(?:path|stdin|stdout|stderr|exit|excepthook|displayhook|modules|argv"
    r"|dont_write_bytecode)(?:\.|$)"
)
# Their decorators and bases make something of what they are given, and keep it nowhere.
_KEEP_NOTHING = set(
    "attr attrs click msgspec numba numpy prefect pydantic tenacity typer typing_extensions".split()
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
    module, name = effects
    info = collector.module_info(module)
    if info.source is None:
        return
    if name:
        nodes = info.source.statements_of(name)
    else:
        collector.module_named(module.__name__.rpartition(".")[0])
        for read in info.source.imported_for_effect:
            target = absolute(read, vars(module).get("__package__") or "")
            collector.module_named(target)
            collector.module_named(".".join((target, *read.attrs)))
        if info.source.effects is None:
            info.source.effects = [*_acting(collector, info.source.tree.body, vars(module))]
        nodes = []
        for node in info.source.effects:
            if isinstance(node, Definition):
                collector.link(SideEffects(module, node.name))
            else:
                nodes.append(node)
    if nodes:
        location = Location(info.file, nodes[0].lineno, tuple(nodes), module)
        items = statements(collector, location, at_import=not name)
        collector.add_part("module", location, items, "\n".join(map(text_of, nodes)))


def _acting(collector: Collector, body: list[ast.stmt], names: Globals) -> Iterator[ast.stmt]:
    for statement in body:
        inside = statement.body if isinstance(statement, ast.ClassDef) else []
        acts = _Finder(collector, names).any_acts(running(statement))
        if acts or any(_acting(collector, inside, names)):
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

    def _is_kept(self, statement: Definition) -> bool:
        """Whether a decorator, base or metaclass may keep what *statement* defines."""
        made: Any = self.names.get(statement.name)
        makers = [self._value(root_name(each)) for each in statement.decorator_list]
        if is_instance(made, type):
            makers.append(type(made))
            makers += [unwrap(vars(base).get("__init_subclass__")) for base in made.__mro__[1:]]
        for maker in makers:
            module = module_name_of(maker) or ""
            is_foreign = self.collector.codebase.kind_of_name(module) == INSTALLED
            if is_foreign and module.partition(".")[0] not in _KEEP_NOTHING:
                return True
        return any(map(self.is_acting, makers))

    def any_acts(self, nodes: Iterable[ast.AST]) -> bool:
        """Whether one of *nodes* does, by itself or by the project's code that it calls."""
        nodes = list(nodes)
        alone = {each.value for each in nodes if isinstance(each, ast.Expr)}
        return any(
            self._is_kept(each)
            if isinstance(each, Definition)
            else self._acts(each, is_alone=each in alone)
            for each in nodes
        )

    def _acts(self, node: ast.AST, *, is_alone: bool) -> bool:
        is_call = isinstance(node, ast.Call)
        is_set = False
        if isinstance(node, ast.Attribute | ast.Subscript):
            is_set = not isinstance(node.ctx, ast.Load)
        root, attrs = dotted(node)
        value = self._value(root)
        if is_call and self.is_acting(value):
            return True
        is_code = is_instance(value, CODE)
        if self.collector.owns(value if is_code else type(value)):
            return is_call and is_alone and is_code
        if value is MISSING:
            # What a loop or a comprehension gives; in a function, a part of a library.
            is_setter = is_alone and attrs and _SETTERS.match(attrs[-1])
            return root != "self" and bool(is_set or is_setter or (is_call and not attrs))
        module = module_name_of(value)
        if is_code and not is_instance(value, ModuleType):
            attrs.insert(0, value.__name__)
        path = ".".join((module or "", *attrs))
        if _SILENT.match(path) or (module in _CONTAINERS and not is_code):
            return False
        if is_call:
            return is_alone or _SETTERS.match(path.rpartition(".")[2]) is not None
        return is_set

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
