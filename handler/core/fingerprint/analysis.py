"""
Which outside names a piece of source reads, found without running it.

Coarse on purpose: a name that only part of a function binds counts as an outside name, too, if
one exists.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .model import tagged
from .normal import Function, canonical
from .source import Read, Source, bound_by, imported, running
from .values import READS_FILE

# A read of any name of the module that the source is part of.
OWN_MODULE = "globals()"

# What counts besides code.
EXTRAS = {"docs", "annotations", "subclasses", "text"}
# The names that make these count, and those of what cannot be known.
_MEANINGS = {
    "docs": "__doc__ getdoc model_json_schema schema_json json_schema TypeAdapter",
    "annotations": (
        "__annotations__ __annotate__ __signature__ signature getfullargspec get_type_hints"
        " get_annotations validate_call TypeAdapter singledispatch singledispatchmethod"
    ),
    "subclasses": "__subclasses__",
    "text": "getsource getsourcelines getcomments findsource",
    READS_FILE: (
        "open read_text read_bytes read_csv read_table read_fwf read_json read_parquet read_excel"
        " read_feather read_pickle read_xml read_orc read_hdf read_ipc read_avro read_ndjson"
        " scan_csv scan_parquet scan_ipc scan_ndjson loadtxt genfromtxt fromfile memmap load_dotenv"
        " get_data ConfigParser RawConfigParser ZipFile TarFile FileSystemLoader PackageLoader"
        " numpy.load torch.load sqlite3.connect linecache.getline linecache.getlines dbm.open"
        " xml.etree.ElementTree.parse xml.etree.ElementTree.iterparse xml.dom.minidom.parse"
    ),
    "lists a folder, whose content does not count": (
        "listdir scandir iterdir glob iglob rglob os.walk os.fwalk"
    ),
    "starts a process, whose code does not count": (
        "subprocess Popen create_subprocess_exec create_subprocess_shell os.system os.popen"
        " os.execv os.execve os.execvp os.spawnv os.spawnvp os.posix_spawn"
    ),
    "reads the environment, whose variables do not count": "environ environb getenv getenvb",
    "reads bytecode": "co_code co_consts",
    "`{}` finds code at run time": (
        "entry_points iter_entry_points run_path run_module walk_packages iter_modules"
        " spec_from_file_location SourceFileLoader LazyLoader Unpickler marshal.load marshal.loads"
        " pickle.load pickle.loads dill.load dill.loads cloudpickle.load cloudpickle.loads"
        " joblib.load shelve.open"
    ),
    "`{}` runs code that is created at run time": "eval exec",
}
# Functions that are given the names of modules as texts.
FINDERS = set(
    "import_module __import__ modules resolve_name locate dictConfig find_spec run_module".split()
)
_WATCHED = {"__name__", *FINDERS, *" ".join(_MEANINGS.values()).split()}
# Functions that reach any name of the module that calls them.
_OWN_READERS = {"globals", "eval", "exec"}


class Unit(NamedTuple):
    """
    What was found in a piece of source.

    Args:
        text: Digest of its canonical text.
        reads: Outside names, each with its line.
        nodes: Its statements or expressions.
        imports: What it imports when it runs, each with its line.
        words: Names and attributes in it that have a meaning here, each with its line.
    """

    text: str
    nodes: tuple[ast.AST, ...]
    reads: dict[Read, int]
    imports: dict[Read, int]
    words: dict[str, int]


@functools.cache
def meanings_of(word: str) -> frozenset[str]:
    """What counts besides code if *word* is read, and what cannot be known then."""
    return frozenset(meaning for meaning, words in _MEANINGS.items() if word in words.split())


@functools.lru_cache(maxsize=1 << 16)
def analyse(source: Source, nodes: tuple[ast.AST, ...]) -> Unit:
    """
    Read *nodes*, which are part of *source*.

    Args:
        source: A module.
        nodes: Statements or expressions of it.
    """
    # If the program reads source, or it is nested too deeply, all of the file counts.
    texts = [source.text] if source.is_read else []
    try:
        texts += map(canonical, nodes)
    except RecursionError:
        texts = [source.text]
    unit = Unit(tagged("source", *texts), nodes, {}, {}, {})
    for node in nodes:
        _read(node, unit)
    return unit


def _read(node: ast.AST, unit: Unit) -> None:
    own = _own_names(node)
    # A chain such as ``a.b.c`` counts as a whole: what it consists of was seen.
    seen: set[ast.AST] = set()
    late: dict[str, list[Read]] = {}
    inside = list(ast.walk(node))
    for inner in inside:
        if isinstance(inner, ast.Import | ast.ImportFrom):
            for name, read in imported(inner):
                late.setdefault(name, []).append(read)
                unit.imports[read] = inner.lineno
    for inner in inside:
        if inner in seen or not isinstance(inner, ast.Name | ast.Attribute):
            continue
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            continue
        line = inner.lineno
        attrs: tuple[str, ...] = ()
        start: ast.expr = inner
        while isinstance(start, ast.Attribute):
            seen.add(start)
            attrs = (start.attr, *attrs)
            start = start.value
        names = attrs
        if isinstance(start, ast.Name):
            seen.add(start)
            names = (start.id, *attrs)
            for origin in late.get(start.id, ()):
                unit.reads.setdefault(origin._replace(attrs=origin.attrs + attrs), line)
            if start.id in _OWN_READERS:
                unit.reads.setdefault(Read(OWN_MODULE), line)
            if start.id not in own:
                unit.reads.setdefault(Read(start.id, attrs), line)
        for name in _WATCHED.intersection(names):
            unit.words.setdefault(name, line)


def _own_names(function: ast.AST) -> set[str]:
    """The names that a function binds itself."""
    if not isinstance(function, Function | ast.Lambda):
        return set()
    names = {each.arg for each in ast.iter_child_nodes(function.args) if isinstance(each, ast.arg)}
    if isinstance(function, Function):
        for statement in function.body:
            for node in running(statement):
                names.update(bound_by(node))
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            names.difference_update(node.names)
    return names


def texts_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """All texts in *nodes*, those that are put together from literals as one."""
    for node in nodes:
        for inner in ast.walk(node):
            if text := _text_of(inner):
                yield text


def _text_of(node: ast.AST) -> str:
    """The text that an expression of literals evaluates to; "" if it contains anything else."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.BinOp(left, ast.Add(), right) if start := _text_of(left):
            end = _text_of(right)
            return end and start + end
    return ""
