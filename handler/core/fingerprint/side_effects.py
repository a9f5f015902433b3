"""
What a module changes in others when it is imported: ``random.seed(3)``, ``READY = setup()``.

No name reads such a change, so the statements count. What a statement sets on the project's own
objects is seen there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import FunctionType, ModuleType
from typing import Any

from . import ownership
from .collector import CODE, Collector, Location, SideEffects, is_instance, module_name_of
from .resolver import statements
from .source import (
    Bindings,
    Definition,
    Globals,
    Source,
    bound_by,
    dotted,
    expressions,
    imported,
    root_name,
    text_of,
)
from .values import HIDDEN_STATE, MISSING

# Modules, and attributes of modules, whose state does not decide what a program computes.
_SILENT = re.compile(
    r"(?:logging|typing|faulthandler)(?:\.|$)|warnings\.warn(?:_explicit)?(?:\.|$)"
    r"|sys\.(?:path|stdin|stdout|stderr|exit|excepthook|displayhook|modules|argv"
    r"|dont_write_bytecode)(?:\.|$)"
)
# Functions that are called to change something, also if their result is kept:
# ``old = locale.setlocale(…)``.
_SETTERS = re.compile(
    r"(?:set|seed|(?:un)?register|(?:un)?install|patch|configure|enable|disable|activate|use|setup"
    r"|init|initialize|reset|simplefilter|filterwarnings|resetwarnings|chdir|umask|signal|alarm"
    r"|tzset|load_dotenv|manual_seed)$"
    r"|(?:set|seed|register|install|patch|enable|disable|activate|use|setup|init|reset|clear|add)"
    r"(?:_|[A-Z])|set(?!tings$)[a-z]+$"
)
# What may run when an instance or a class is made, or a context is entered.
_HOOKS = (
    "__init__ __new__ __post_init__ __enter__ __exit__ __set_name__ __prepare__ __call__"
).split()
# Functions that call their arguments.
_CALLERS = {"map", "filter", "reduce", "starmap", "sorted", "apply", "submit"}


def visit_side_effects(collector: Collector, effects: SideEffects) -> None:
    """Add the statements of a module that change others; visit what it imports for its effects."""
    module = effects.module
    _, _, file, source = collector.module_info(module)
    if source is None:
        return
    package = module.__name__.rpartition(".")[0]
    for name in filter(None, (package, *source.imported_for_effect)):
        collector.module_named(name)
    if source.effects is None:
        source.effects = tuple(_effects(collector, source, vars(module)))
    if nodes := source.effects:
        location = Location(file, nodes[0].lineno, nodes, module)
        text = "\n".join(text_of(source, node) for node in nodes)
        items = statements(collector, location)
        collector.add_part("module", location, items, text)


def _effects(collector: Collector, source: Source, names: Globals) -> Iterator[ast.stmt]:
    harmless: set[int] = set()
    for node in source.statements:
        seen = set(harmless)
        if _EffectFinder(collector, source, names, seen).has_effect(node):
            yield node
        else:
            # All functions that were read for it.
            harmless = seen


@dataclass
class _EffectFinder:
    """
    Finds the statements of one module, or of one function, that change what is not the project's.

    Args:
        collector: Has the sources of functions that are called.
        source: The source of the statements.
        names: Their globals.
        seen: Functions that were read already, by the identity of their code.
        local: In a function, the statements that bind its own names.
        is_function: Whether the statements are those of a function.
    """

    collector: Collector
    source: Source
    names: Globals
    seen: set[int]
    local: Bindings = field(default_factory=dict)
    is_function: bool = False

    def has_effect(self, node: ast.stmt) -> bool:
        """Whether one statement has an effect, without its inner blocks."""
        if isinstance(node, Definition):
            for item in node.decorator_list:
                if self._call_has_effect(getattr(item, "func", item), is_kept=True):
                    return True
            return self._making_has_effect(self.names.get(node.name))
        if isinstance(node, ast.For) and self._passes_effect(node.iter):
            return True
        alone = node.value if isinstance(node, ast.Expr) else None
        for inner in expressions(node, with_lambdas=True):
            does = False
            match inner:
                case ast.Call(ast.Name("setattr" | "delattr"), [held, *_]):
                    does = self._sets(held, [])
                case ast.Call(function):
                    does = self._call_has_effect(function, is_kept=inner is not alone)
                    does = does or self._passes_effect(inner)
                case ast.comprehension(_, iterable):
                    does = self._passes_effect(iterable)
                case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                    does = self._is_setter(inner)
                case ast.Attribute(held, attr):
                    does = self._sets(held, [attr])
                case ast.Subscript(held, ctx=ast.Store() | ast.Del()):
                    does = self._sets(held, None)
            if does:
                return True
        return False

    def _sets(self, held: ast.expr, attr: list[str] | None) -> bool:
        """Whether *held*, whose attribute or item is set, is foreign; a returned list is not."""
        root, attrs = dotted(held)
        owner, is_result = self._owner(root)
        if is_result and attr is None and isinstance(held, ast.Name):
            return False
        return _is_foreign(owner, attrs + (attr or []))

    def _call_has_effect(self, function: ast.expr, *, is_kept: bool) -> bool:
        """Whether a call changes other modules, or may do so because its result is not kept."""
        root, attrs = dotted(function)
        if not is_kept and root in ("exec", "getattr", "__import__"):
            return True
        callee = self._value(function)
        is_alone = not is_kept and is_instance(self._lookup(root), CODE)
        if is_instance(callee, FunctionType | type) and self.collector.owns(callee):
            return is_alone or self._run_has_effect(callee)
        owner, is_result = self._owner(root)
        attrs = attrs or [str(getattr(callee, "__name__", ""))]
        if owner is None or _is_silent(owner, attrs):
            return False
        if is_kept or is_result:
            return is_result and _is_foreign_setter(owner, attrs)
        return is_alone or _is_foreign(owner, attrs)

    def _passes_effect(self, node: ast.AST) -> bool:
        """Whether a function of the project that has an effect is passed on: ``map(seed, …)``."""
        if isinstance(node, ast.Call):
            root, attrs = dotted(node.func)
            if [root, *attrs][-1] not in _CALLERS:
                return False
        for item in ast.walk(node):
            if isinstance(item, ast.Name | ast.Attribute):
                value = self._value(item)
                if is_instance(value, FunctionType) and self._run_has_effect(value):
                    return True
        return False

    def _is_setter(self, node: ast.Name | ast.Attribute) -> bool:
        """Whether a name means a foreign function that changes state: ``map(random.seed, …)``."""
        value = self._value(node)
        if not is_instance(value, CODE[:3]) or self.collector.owns(value):
            return False
        root, attrs = dotted(node)
        attrs = attrs or [value.__name__]
        return _is_foreign_setter(self._owner(root)[0], attrs)

    def _making_has_effect(self, made: Any) -> bool:
        """Whether the metaclass of a class, or a base, has an effect when the class is made."""
        if not is_instance(made, type):
            return False
        bases = type.__dict__["__bases__"].__get__(made)
        hooks = [_member(base, "__init_subclass__") for base in bases]
        return any(map(self._run_has_effect, (type(made), *hooks)))

    def _run_has_effect(self, callee: Any) -> bool:
        """Whether a function of the project, or the making of an instance, has an effect."""
        if not self.collector.owns(callee):
            return False
        if is_instance(callee, type):
            return any(self._run_has_effect(_member(callee, name)) for name in _HOOKS)
        while is_instance(inner := vars(callee).get("__wrapped__"), FunctionType):
            callee = inner
        code = callee.__code__
        if id(code) in self.seen or not self.collector.owns(callee):
            return False
        self.seen.add(id(code))
        source = self.collector.source(code.co_filename, callee.__globals__)
        if source is None:
            return False
        for definition in source.function(code, callee.__qualname__):
            body = [node for node in ast.walk(definition) if isinstance(node, ast.stmt)][1:]
            local: Bindings = {}
            for node in body:
                for name in bound_by(node):
                    local.setdefault(name, []).append(node)
            finder = replace(
                self, source=source, names=callee.__globals__, local=local, is_function=True
            )
            if any(map(finder.has_effect, body)):
                return True
        return False

    def _lookup(self, name: str) -> Any:
        return MISSING if name in self.local else self.names.get(name, MISSING)

    def _value(self, node: ast.expr) -> Any:
        """What an expression means, found without running anything; a class for its instance."""
        match node:
            case ast.Name(name):
                return self._lookup(name)
            case ast.Call(function):
                called = self._value(function)
                return called if is_instance(called, type) else MISSING
            case ast.Attribute(value, attr):
                held = self._value(value)
                if is_instance(held, ModuleType):
                    return vars(held).get(attr, MISSING)
                if held is not MISSING:
                    return _member(held if is_instance(held, type) else type(held), attr)
        return MISSING

    def _owner(self, name: str, depth: int = 0) -> tuple[str | None, bool]:
        """The module that *name*'s value is from, and whether one of its functions returned it."""
        value = self._lookup(name)
        if is_instance(value, CODE):
            return module_name_of(value), False
        nodes = self.local.get(name)
        if nodes is None and value is not MISSING:
            nodes = self.source.bindings.get(name)
        if not nodes or depth > 8:
            return None, False
        node = nodes[-1]
        if isinstance(node, ast.Import | ast.ImportFrom):
            # Changed here, and read where it was made.
            if HIDDEN_STATE.match(type(value).__module__):
                return type(value).__module__, False
            read = dict(imported(node))[name]
            return (None if read.level else read.root), False
        made = getattr(node, "value", None)
        root = root_name(made)
        if root in ("", name):
            return None, False
        if isinstance(made, ast.Call) and is_instance(kind := self._value(made.func), type):
            # Hidden state is known by statements only, so those in functions that change it count.
            is_hidden = self.is_function and HIDDEN_STATE.match(kind.__module__)
            return (kind.__module__ if is_hidden else None), False
        owner, is_result = self._owner(root, depth + 1)
        return owner, is_result or isinstance(made, ast.Call)


def _member(kind: type, name: str) -> Any:
    for base in type.__dict__["__mro__"].__get__(kind):
        if name in vars(base):
            value = vars(base)[name]
            return value.__func__ if is_instance(value, staticmethod | classmethod) else value
    return MISSING


def _is_silent(owner: str, attrs: list[str]) -> bool:
    return _SILENT.match(".".join((owner.partition(".")[0], *attrs))) is not None


def _is_foreign_setter(owner: str | None, attrs: list[str]) -> bool:
    return _SETTERS.match(attrs[-1]) is not None and _is_foreign(owner, attrs)


def _is_foreign(owner: str | None, attrs: list[str]) -> bool:
    if owner is None or _is_silent(owner, attrs):
        return False
    return ownership.kind_of_module(owner) in (ownership.STANDARD, ownership.INSTALLED)
