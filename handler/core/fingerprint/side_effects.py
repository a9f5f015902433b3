"""
What a module does to others when it is imported: ``random.seed(3)``, ``getcontext().prec = 9``, ``READY = setup()``.

What is changed is read by no name, so the statements count. What a statement sets on the project's own is seen there.
"""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from pfl.handler.core.fingerprint import ownership
from pfl.handler.core.fingerprint.collector import (
    CODE,
    MISSING,
    Collector,
    Location,
    SideEffects,
    is_instance,
    module_name_of,
)
from pfl.handler.core.fingerprint.resolver import statements
from pfl.handler.core.fingerprint.source import Source, bound_by, expressions, imported, root_name
from pfl.handler.core.fingerprint.values import HIDDEN_STATE, is_below

_SILENT = {"logging", "typing", "faulthandler"}
_SILENT_ATTRIBUTES = {
    "sys": {
        "path",
        "stdin",
        "stdout",
        "stderr",
        "exit",
        "excepthook",
        "displayhook",
        "modules",
        "argv",
        "dont_write_bytecode",
    },
    "warnings": {"warn", "warn_explicit"},
}
# Names of functions that are called to change something, also where their result is kept: ``old = locale.setlocale(…)``.
_SETS = re.compile(
    r"(?:set|seed|(?:un)?register|(?:un)?install|patch|configure|enable|disable|activate|use|setup|init|initialize|reset"
    r"|simplefilter|filterwarnings|resetwarnings|chdir|umask|signal|alarm|tzset|load_dotenv|manual_seed)$"
    r"|(?:set|seed|register|install|patch|enable|disable|activate|use|setup|init|reset|clear|add)(?:_|[A-Z])|set(?!tings$)[a-z]+$"
)
# What making an instance or a class, or entering a context, may run.
_RUN = (
    "__init__",
    "__new__",
    "__post_init__",
    "__enter__",
    "__exit__",
    "__set_name__",
    "__prepare__",
    "__call__",
)
_HANDED_ON = {
    "map",
    "filter",
    "reduce",
    "starmap",
    "sorted",
    "apply",
    "submit",
}  # call what they are given


def visit_side_effects(collector: Collector, label: str, effects: SideEffects) -> None:
    """Statements of a module that change what is not its own; of modules imported for nothing else, and packages, too."""
    module, _, file, source = collector.module_info(effects.module)
    if source is None:
        return
    for name in (*_parents(module.__name__), *source.imported_for_effect):
        if is_instance(other := sys.modules.get(name), types.ModuleType):
            collector.module_info(other)
    if "acting" not in source.units:
        source.units["acting"] = tuple(_acting(collector, source, vars(module)))
    if nodes := source.units["acting"]:
        location = Location(file, nodes[0].lineno, nodes, module)
        text = "\n".join(source.text_of(node) for node in nodes)
        collector.add_part(label, "module", location, statements(collector, label, location), text)


def _acting(collector: Collector, source: Source, names: dict[str, Any]) -> Iterator[ast.stmt]:
    harmless: set[int] = set()
    for node in source.statements:
        seen = set(harmless)
        if _EffectFinder(collector, source, names, seen).acts(node):
            yield node
        else:
            harmless = seen  # all that was looked at


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


class _EffectFinder:
    """
    Tells which statements of one module, or of one function, change what is not the project's.

    Args:
        reading: Gives the sources of functions that are called.
        source: Where the statements stand.
        names: Its globals.
        seen: Functions that are looked at already, by the identity of their code.
        local: Of a function, the statements that bind its own names.
    """

    def __init__(
        self,
        collector: Collector,
        source: Source,
        names: dict[str, Any],
        seen: set[int],
        local: dict[str, list[ast.stmt]] | None = None,
    ) -> None:
        self.collector, self.source, self.names, self.seen = collector, source, names, seen
        self.local, self.is_inside = local or {}, local is not None

    def acts(self, node: ast.stmt) -> bool:
        """Whether one statement does, without its inner blocks."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            called = [
                item.func if isinstance(item, ast.Call) else item for item in node.decorator_list
            ]
            return any(self._calls(item, is_kept=True) for item in called) or self._acts_when_made(
                self.names.get(node.name)
            )
        if isinstance(node, ast.For) and self._hands_on(node.iter):
            return True
        alone = node.value if isinstance(node, ast.Expr) else None
        for inner in expressions(node, with_lambdas=True):
            if isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Load):
                does = self._is_setter(inner)
            elif isinstance(inner, ast.Call):
                if (
                    isinstance(inner.func, ast.Name)
                    and inner.func.id in ("setattr", "delattr")
                    and inner.args
                ):
                    does = self._sets(inner.args[0], [])
                else:
                    does = self._calls(inner.func, is_kept=inner is not alone) or self._hands_on(
                        inner
                    )
            elif isinstance(inner, ast.Attribute | ast.Subscript) and not isinstance(
                inner.ctx, ast.Load
            ):
                does = self._sets(
                    inner.value, [inner.attr] if isinstance(inner, ast.Attribute) else None
                )
            elif isinstance(inner, ast.comprehension):
                does = self._hands_on(inner.iter)
            else:
                continue
            if does:
                return True
        return False

    def _sets(self, held: ast.expr, attr: list[str] | None) -> bool:
        """Whether *held*, of which an attribute or, without *attr*, an item is set, is foreign; a list that was returned is not."""
        owner, is_result = self._owner(root_name(held))
        return _is_foreign(owner, _attributes(held) + (attr or [])) and not (
            is_result and attr is None and isinstance(held, ast.Name)
        )

    def _calls(self, function: ast.expr, *, is_kept: bool) -> bool:
        """Whether a call does something to others, or, where its result is not kept, may."""
        if not is_kept and root_name(function) in ("exec", "getattr", "__import__"):
            return True
        callee, root = self._value(function), self._value(function, root_only=True)
        is_alone = not is_kept and is_instance(root, CODE)
        if is_instance(callee, types.FunctionType | type) and self.collector.codebase.owns(callee):
            return is_alone or self._acts_when_called(callee)
        owner, is_result = self._owner(root_name(function))
        attrs = _attributes(function) or [str(getattr(callee, "__name__", ""))]
        if owner is None or _is_silent(owner, attrs):
            return False
        if is_kept or is_result:
            return is_result and _is_foreign(owner, attrs) and bool(_SETS.match(attrs[-1]))
        return is_alone or _is_foreign(owner, attrs)

    def _hands_on(self, node: ast.AST) -> bool:
        """Whether a function of the project that acts is given to what calls it: ``map(seed, …)``."""
        if (
            isinstance(node, ast.Call)
            and (_attributes(node.func) or [root_name(node.func)])[-1] not in _HANDED_ON
        ):
            return False
        given = [
            self._value(item)
            for item in ast.walk(node)
            if isinstance(item, ast.Name | ast.Attribute)
        ]
        return any(
            is_instance(each, types.FunctionType) and self._acts_when_called(each) for each in given
        )

    def _is_setter(self, node: ast.Name | ast.Attribute) -> bool:
        """Whether a name stands for a function that changes something, called here or handed on: ``map(random.seed, …)``."""
        value = self._value(node)
        if is_instance(
            value, types.FunctionType | types.BuiltinFunctionType | types.MethodType
        ) and not self.collector.codebase.owns(value):
            attrs = _attributes(node) or [value.__name__]
            return bool(_SETS.match(attrs[-1])) and _is_foreign(
                self._owner(root_name(node))[0], attrs
            )
        return False

    def _acts_when_made(self, made: Any) -> bool:
        """Whether the metaclass of a class, or a base, does something when it is written down."""
        if not is_instance(made, type):
            return False
        hooks = [
            _member(base, "__init_subclass__") for base in type.__dict__["__bases__"].__get__(made)
        ]
        return any(
            self.collector.codebase.owns(each) and self._acts_when_called(each)
            for each in (type(made), *hooks)
        )

    def _acts_when_called(self, callee: Any) -> bool:
        """Whether a function of the project, or the making of an instance, acts."""
        if is_instance(callee, type):
            made = [_member(callee, name) for name in _RUN]
            return any(
                self._acts_when_called(each) for each in made if self.collector.codebase.owns(each)
            )
        while "__wrapped__" in vars(callee) and is_instance(
            vars(callee)["__wrapped__"], types.FunctionType
        ):
            callee = vars(callee)["__wrapped__"]
        code = callee.__code__
        if id(code) in self.seen or not self.collector.codebase.owns(callee):
            return False
        self.seen.add(id(code))
        source = self.collector.source(code.co_filename, callee.__globals__)
        for definition in source.function(code, callee.__qualname__) if source else ():
            inside = [
                node
                for node in ast.walk(definition)
                if isinstance(node, ast.stmt) and node is not definition
            ]
            local: dict[str, list[ast.stmt]] = {}
            for node in inside:
                for name in bound_by(node):
                    local.setdefault(name, []).append(node)
            watch = _EffectFinder(self.collector, source, callee.__globals__, self.seen, local)  # type: ignore[arg-type]
            if any(watch.acts(node) for node in inside):
                return True
        return False

    def _value(self, node: ast.expr, *, root_only: bool = False) -> Any:
        """What an expression stands for, as far as that can be looked up without running anything; a class for its instance."""
        if isinstance(node, ast.Name):
            return MISSING if node.id in self.local else self.names.get(node.id, MISSING)
        if isinstance(node, ast.Call):
            called = self._value(node.func, root_only=root_only)
            return called if root_only or is_instance(called, type) else MISSING
        if not isinstance(node, ast.Attribute | ast.Subscript):
            return MISSING
        held = self._value(node.value, root_only=root_only)
        if root_only or held is MISSING or isinstance(node, ast.Subscript):
            return held if root_only else MISSING
        if is_instance(held, types.ModuleType):
            return vars(held).get(node.attr, MISSING)
        return _member(held if is_instance(held, type) else type(held), node.attr)

    def _owner(self, name: str | None, depth: int = 0) -> tuple[str | None, bool]:
        """The module from which what is bound to *name* comes, and whether a function of it returned that."""
        if name is None or depth > 8:
            return None, False
        if name not in self.local and is_instance(value := self.names.get(name, MISSING), CODE):
            return module_name_of(value), False
        nodes = self.local.get(name) or (
            self.source.bindings.get(name) if name in self.names else None
        )
        if not nodes:
            return None, False
        node = nodes[-1]
        if isinstance(node, ast.Import | ast.ImportFrom):
            read = dict(imported(node))[name]
            if is_below(type(self.names.get(name)).__module__, HIDDEN_STATE):
                return type(
                    self.names[name]
                ).__module__, False  # changed here, and read where it was made
            return (read.root, False) if read.level == 0 else (None, False)
        made = getattr(node, "value", None)
        root = root_name(made) if isinstance(made, ast.expr) else None
        if root is None or root == name:
            return None, False
        if isinstance(made, ast.Call) and is_instance(kind := self._value(made.func), type):
            # What keeps its state to itself is known by its statements only, so what functions do to it must be one of these.
            return (
                (kind.__module__, False)
                if self.is_inside and is_below(kind.__module__, HIDDEN_STATE)
                else (None, False)
            )
        owner, is_result = self._owner(root, depth + 1)
        return owner, is_result or isinstance(made, ast.Call)


def _member(kind: type, name: str) -> Any:
    value = next(
        (vars(base)[name] for base in type.__dict__["__mro__"].__get__(kind) if name in vars(base)),
        MISSING,
    )
    return value.__func__ if is_instance(value, staticmethod | classmethod) else value


def _attributes(node: ast.AST) -> list[str]:
    """``["b", "d"]`` of ``a.b(c).d[e]``."""
    attrs: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute):
            attrs.insert(0, node.attr)
        node = node.func if isinstance(node, ast.Call) else node.value
    return attrs


def _is_silent(owner: str, attrs: list[str]) -> bool:
    top = owner.partition(".")[0]
    return top in _SILENT or bool(attrs) and attrs[0] in _SILENT_ATTRIBUTES.get(top, ())


def _is_foreign(owner: str | None, attrs: list[str]) -> bool:
    return (
        owner is not None
        and ownership.kind_of_module(owner) in (ownership.STANDARD, ownership.INSTALLED)
        and not _is_silent(owner, attrs)
    )
