"""The face of the fingerprint: what it returns, what it refuses, and what it remembers."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from corpus import HERE, REPOSITORY, Fresh

from pfl.handler.core.errors import InvalidRequestError
from pfl.handler.core.fingerprint import Part, fingerprint, record_reads
from pfl.handler.core.fingerprint.changes import explain
from pfl.handler.core.fingerprint.import_recorder import recorded_variables


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes modules, imports them, and forgets them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**modules):
        for name, text in modules.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(next(iter(modules)).replace("__", "."))

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(tmp_path) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def by_name(found):
    return {part.name: part for part in found.parts}


SAMPLE = '''
import re

RATE = 3
API_KEY = "hunter2"
WORD = re.compile("[a-z]+")


class Scale:
    """Doc."""

    unit = "m"

    def run(self, x):
        return x * RATE


def helper(x, words={"a", "b"}):
    """Doc."""
    return WORD.sub(API_KEY, x), Scale().run(x)


def step(x):
    return [helper(item) for item in x]
'''

LAZY = """
class Lazy:
    def __getattr__(self, name):
        raise RuntimeError(name)

lazy = Lazy()
"""

PINNED = {
    "step": "5c359c9628a410285fd9fa3a64fb498a8eefb2c790107e30a0192b82fed220e2",
    "helper": "a272bc7256c3fa8dca108ca5ffb1dc0ebf606abefeaa0a0d02c7ba5b0c146481",
    "Scale": "8c7d8161d25ba99a555e938aa55de873d5f58ff80b7eaf716fb1ced6f88e7a4d",
    "RATE": "4eaafee46a32d58ceaef28ade242006f209631b33d210e24e3a2148d4700bca3",
}
PINNED_DIGEST = "e65d4cdf37de74659e82158779beb30997034af94ed9f84531e43066dde44ad4"


def test_digests_are_what_they_were(project):
    """A change of how things are hashed makes every stored result stale: it is deliberate here."""
    found = fingerprint(project(sample=SAMPLE).step)
    assert {name: by_name(found)[name].digest for name in PINNED} == PINNED
    assert found.digest == PINNED_DIGEST


def test_parts_have_a_place_and_a_text(project):
    found = fingerprint(project(sample=SAMPLE).step)
    parts = by_name(found)
    assert found.parts[0].name == "step"
    assert (parts["RATE"].kind, parts["RATE"].file, parts["RATE"].line, parts["RATE"].text) == (
        "constant",
        "sample.py",
        4,
        "3",
    )
    assert parts["Scale.run"].kind == "function"
    assert parts["helper.words"].text == "{'a', 'b'}"
    assert (
        parts["helper"].text.startswith("def helper(x, words=")
        and "Doc" not in parts["helper"].text
    )
    assert [Path(file).name for file in found.files] == ["sample.py"]
    assert found.opaque == ()


def test_secrets_are_masked_by_name_and_by_shape(project):
    module = project(
        sample='API_KEY = "hunter2"\nURL = "postgres://me:pass@host/db"\n'
        'CONF = {"password": "abc", "n": 1}\n'
        'GIVEN = "ghp_abcdefghijklmnopqrstuvwxyz"\n\ndef step(x):\n'
        "    return API_KEY, URL, CONF, GIVEN\n"
    )
    texts = json.dumps(fingerprint(module.step).to_json())
    for secret in ("hunter2", "pass@", "'abc'", "ghp_"):
        assert secret not in texts


FROM_ENVIRONMENT = """
import os, types
from urllib.parse import urlsplit
AUTH = os.environ["PFL_AUTH"]
HEADERS = {"Authorization": "Bearer " + AUTH}
KEY = AUTH.encode()
PASSWORD = urlsplit(os.getenv("PFL_URL")).password
DIALED = urlsplit(os.getenv("PFL_URL")).hostname
PIN = int(os.environ["PFL_PIN"])
DYNAMIC = os.environ.pop("PFL_" + "POPPED")
class BaseSettings:
    def __init__(self, **values):
        vars(self).update(values)
class Settings(BaseSettings):
    token: str
    __prefix__ = "MY_APP_"
FOUND = {name.lower(): value for name, value in os.environ.items()}
SETTINGS = Settings(token=FOUND["my_app_token"])
def step(x):
    return AUTH, HEADERS, KEY, PASSWORD, DIALED, PIN, DYNAMIC, SETTINGS
"""
SECRETS = {
    "PFL_AUTH": "s3cr",
    "PFL_URL": "db://me:hidden-word@inner.host/x",
    "PFL_PIN": "40414243",
    "PFL_POPPED": "popped-value",
    "MY_APP_TOKEN": "tok'en\nof two lines",
}


def fingerprint_of_environment(project, monkeypatch, text=FROM_ENVIRONMENT, **changed):
    for name, value in (SECRETS | changed).items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("sample", None)
    with record_reads():
        return fingerprint(project(sample=text).step)


def test_values_of_the_environment_do_not_stand_in_the_parts(project, monkeypatch):
    found = fingerprint_of_environment(project, monkeypatch)
    stored = json.dumps(found.to_json())
    pieces = [
        "s3cr",
        "hidden-word",
        "inner.host",
        "40414243",
        "popped-value",
        "tok'en",
        "two lines",
    ]
    assert [piece for piece in pieces if piece in stored] == []
    texts = {name: part.text for name, part in by_name(found).items()}
    assert texts["HEADERS"] == "{'Authorization': 'Bearer ***PFL_AUTH***'}"
    assert (texts["KEY"], texts["PASSWORD"]) == ("b'***PFL_AUTH***'", "'***PFL_URL***'")
    assert (texts["PIN"], texts["DYNAMIC"]) == ("***PFL_PIN***", "'***PFL_POPPED***'")
    assert texts["SETTINGS"] == "Settings(token='***MY_APP_TOKEN***')"
    plain = project(plain="AUTH = 's3' + 'cr'\ndef step(x):\n    return AUTH\n")
    monkeypatch.delenv("PFL_AUTH")
    monkeypatch.delitem(recorded_variables, "PFL_AUTH")
    guessed = by_name(fingerprint(plain.step))["AUTH"]
    assert guessed.text == "'s3cr'"
    assert guessed.digest != by_name(found)["AUTH"].digest


def test_a_value_of_the_environment_counts_and_is_explained_by_its_name(project, monkeypatch):
    found = fingerprint_of_environment(project, monkeypatch)
    assert fingerprint_of_environment(project, monkeypatch).digest == found.digest
    changed = {
        "PFL_AUTH": ["AUTH", "HEADERS", "KEY"],
        "PFL_PIN": ["PIN"],
        "MY_APP_TOKEN": ["SETTINGS"],
    }
    for name, parts in changed.items():
        other = fingerprint_of_environment(project, monkeypatch, **{name: "98765432"})
        said = explain(found.parts, other.parts)
        assert [f"`{part}` in sample.py" in line for part, line in zip(parts, said, strict=True)]
        assert all(f": the value of {name} (from the environment) changed" in line for line in said)


def test_values_that_the_code_states_and_those_of_the_system_are_shown(project, monkeypatch):
    text = """
import os
STAGE = os.environ.get("PFL_STAGE", "production")
HOME = os.environ["HOME"]
TABLE = {"production": 8080}
PORT = int(os.environ["PFL_PORT"])
UNREAD = "of ano" + "ther"
def step(x):
    return STAGE, HOME, TABLE, PORT, UNREAD
"""
    environ = {"PFL_STAGE": "production", "PFL_PORT": "8080", "Q" + "X": "another"}
    found = fingerprint_of_environment(project, monkeypatch, text, HOME="/some/home", **environ)
    texts = {name: part.text for name, part in by_name(found).items()}
    assert texts["STAGE"] == "'production'"
    assert texts["HOME"] == "'/some/home'"
    assert texts["TABLE"] == "{'production': 8080}"
    assert texts["PORT"] == "8080"
    assert texts["UNREAD"] == "'of another'"


def test_the_environment_counts_alike_in_every_process(tmp_path):
    """Whether or not the reads of the import were recorded, and whatever else is set."""
    (tmp_path / "sample.py").write_text(
        FROM_ENVIRONMENT.replace('.pop("PFL_" + "POPPED")', '["PFL_POPPED"]')
    )
    code = "import sample\nfrom pfl.handler.core.fingerprint import fingerprint, record_reads\n"
    recorded = (
        "from pfl.handler.core.fingerprint import record_reads\n"
        "with record_reads():\n    import sample\n"
    )
    end = "print(fingerprint(sample.step).digest)"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), **SECRETS}
    digests = {
        subprocess.check_output([sys.executable, "-c", start + code + end], env=environ | more)
        for start, more in [("", {}), (recorded, {}), ("", {"UNREAD": "Bearer s3cr", "A": "s3cr"})]
    }
    assert len(digests) == 1


def test_parts_survive_json(project):
    for part in fingerprint(project(sample=SAMPLE).step).parts:
        assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part
    with pytest.raises(AttributeError):
        part.name = "other"  # type: ignore[misc]


def test_the_second_call_gives_the_same_whatever_ran_between(project):
    module = project(
        sample="import functools\n\nSEEN = {}\nCOUNT = 0\nCLIENT = None\n\nclass Box:\n"
        "    made = 0\n\n    def __init__(self):\n"
        "        Box.made += 1\n        self.calls = []\n\nBOX = Box()\n\n"
        "@functools.lru_cache\ndef cached(x):\n    return x\n\n"
        "def step(x):\n    global COUNT, CLIENT\n    COUNT += 1\n"
        "    CLIENT = CLIENT or object()\n    SEEN[x] = COUNT\n"
        "    BOX.calls.append(x)\n    step.calls = COUNT\n    Box()\n    return cached(x)\n"
        "\nstep.calls = 0\n"
    )
    first = fingerprint(module.step)
    module.step(1)
    module.step(2)
    assert fingerprint(module.step) == first


def test_what_was_fingerprinted_before_makes_no_difference(project):
    """Reading the state of a partial creates its empty dict."""
    text = (
        "from functools import partial\n\nclass Curry:\n    def __init__(self, f):\n"
        "        self.inner = partial(f)\n\n    def __call__(self, x):\n"
        "        return self.inner(x)\n\nneg = Curry(abs)\n\n"
        "def one(x):\n    return neg(x), one.__doc__\n\ndef two(x):\n    return neg(x)\n"
    )
    first = project(sample=text)
    alone = fingerprint(first.two).digest
    second = project(again=text)
    fingerprint(second.one)
    assert fingerprint(second.two).digest == alone


def test_a_rebound_global_is_seen_in_the_same_process(project):
    module = project(sample="RATE = 3\n\ndef step(x):\n    return x * RATE\n")
    first = fingerprint(module.step)
    module.RATE = 4
    assert fingerprint(module.step).digest != first.digest


def test_bytecode_makes_no_difference(tmp_path):
    (tmp_path / "sample.py").write_text(SAMPLE)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, str(HERE / "command.py"), "sample:step"]
    outputs = [subprocess.check_output(command, cwd=tmp_path, env=environ) for _ in range(2)]
    assert list((tmp_path / "__pycache__").glob("sample*.pyc"))
    assert outputs[0] == outputs[1]


def test_nothing_is_called(project):
    """Properties, reprs, comparisons, attribute hooks: none of the project's code runs."""
    module = project(
        sample="RAN = []\n\nclass Meta(type):\n    def __getattribute__(cls, name):\n"
        "        if name == 'secret':\n            RAN.append(1)\n"
        "        return super().__getattribute__(name)\n\nclass Trap(metaclass=Meta):\n"
        "    def __init__(self):\n        self.n = 1\n"
        "    def run(self, *a):\n        RAN.append(a)\n        raise RuntimeError\n"
        "    __repr__ = __eq__ = __len__ = __reduce_ex__ = __getstate__ = run\n"
        "    __iter__ = __bool__ = run\n"
        "    __hash__ = run\n"
        "    def __getattr__(self, name):\n        RAN.append(name)\n"
        "        raise AttributeError(name)\n"
        "    @property\n    def p(self):\n        RAN.append('p')\n\nTRAP = Trap()\n"
        "TRAP.n = 2\nclass Holder:\n    trap = TRAP\n\n"
        "def __getattr__(name):\n    RAN.append(name)\n"
        "    raise AttributeError(name)\n\ndef step(x):\n    RAN.append('step')\n"
        "    return TRAP, Trap, Holder\n"
    )
    module.RAN.clear()
    fingerprint(module.step)
    assert module.RAN == []


@pytest.mark.parametrize("value", [len, "text", 3, None, functools.partial(len)])
def test_what_is_not_python_is_refused(value):
    with pytest.raises(InvalidRequestError, match="no Python source"):
        fingerprint(value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def typed(x):\n    return x", "def typed(x):\n    return x + 1"),
        ("typed = lambda x: x", "typed = lambda x: -x"),
        ("def typed(x, n=1):\n    return n", "def typed(x, n=2):\n    return n"),
        ("R = 1\ndef typed(x):\n    return R", "R = 2\ndef typed(x):\n    return R"),
        (
            "def help(x): return 1\ndef typed(x): return help(x)",
            "def help(x): return 2\ndef typed(x): return help(x)",
        ),
    ],
)
def test_a_function_without_source_counts_with_its_bytecode_and_is_opaque(before, after):
    found = []
    for text in (before, before, after):
        names: dict[str, object] = {"__name__": "nowhere"}
        exec(text, names)
        found.append(fingerprint(names["typed"]))
        assert "its bytecode counts" in found[-1].opaque[0].text
        assert found[-1].opaque[0].name == found[-1].parts[0].name
    assert found[0].digest == found[1].digest != found[2].digest


def test_a_helper_without_source_is_opaque_with_its_place(project):
    found = fingerprint(
        project(
            sample="exec('def helper(x):\\n    return x')\n\ndef step(x):\n    return helper(x)\n"
        ).step
    )
    assert [(part.name, part.kind) for part in found.opaque] == [("helper", "opaque")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return eval(x)", "`eval` runs code"),
        ("exec(x)", "`exec` runs code"),
        ("import importlib\n    return importlib.import_module(x)", "imports a module chosen"),
        ("return open('a.txt').read()", "reads a file"),
        ("import os\n    return os.environ['A']", "reads the environment"),
        (
            "from importlib.metadata import entry_points\n    return entry_points()",
            "finds code at run time",
        ),
        ("import broken", "SyntaxError: invalid syntax at broken.py:1"),
        ("import failing", "ZeroDivisionError: division by zero at failing.py:2"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
    ],
)
def test_what_cannot_be_known_is_said_with_its_place(project, tmp_path, body, reason):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "failing.py").write_text("A = 1\nB = A / 0\n")
    (tmp_path / "helpers.py").write_text("RATE = 3\n")
    module = project(sample=f"import helpers\n\ndef step(x):\n    {body}\n")
    found = fingerprint(module.step)
    said = [(part.file, part.line, part.text) for part in found.opaque]
    assert any(
        reason in text and file == "sample.py" and line in (4, 5) for file, line, text in said
    ), said


@pytest.mark.parametrize(
    ("imports", "expression"),
    [
        ("from pathlib import Path", "(Path('d') / 'a.csv').open().read()"),
        ("from pathlib import Path", "[*Path('d').glob('*')]"),
        ("import gzip", "gzip.open('a.gz').read()"),
        ("import zipfile", "zipfile.ZipFile('a.zip').namelist()"),
        ("from zipfile import ZipFile as Z", "Z('a.zip').namelist()"),
        ("import fakenumpy as np", "np.genfromtxt('a')"),
        ("import joblib", "joblib.load('model')"),
        ("from joblib import load", "load('model')"),
        ("import polars as pl", "pl.scan_parquet('a.parquet')"),
        ("import xml.etree.ElementTree as ET", "ET.parse('a.xml')"),
        ("from xml.etree.ElementTree import parse", "parse('a.xml')"),
        ("import configparser", "configparser.ConfigParser().read('a.ini')"),
        ("import sqlite3", "sqlite3.connect('a.db')"),
        ("from sqlite3 import connect", "connect('a.db')"),
        ("import glob", "glob.glob('*.csv')"),
        ("import os", "[*os.walk('data')]"),
        ("from os import walk", "[*walk('data')]"),
        ("import pickle", "pickle.loads(x)"),
        ("from pickle import load", "load(x)"),
        ("import pickle", "pickle.Unpickler(x).load()"),
        ("import marshal", "marshal.loads(x)"),
        ("import shelve", "shelve.open('a')"),
        ("import importlib.util as u", "u.spec_from_file_location('m', x)"),
        ("import importlib.util as u", "u.LazyLoader(x)"),
        ("import pkgutil", "pkgutil.resolve_name(x)"),
        ("import pydoc", "pydoc.locate(x)"),
        ("import logging.config", "logging.config.dictConfig(x)"),
        ("import subprocess", "subprocess.run(['python', 'other.py'])"),
        ("from subprocess import check_output as run", "run(['python', 'other.py'])"),
        ("import os", "os.system('python other.py')"),
        ("import asyncio", "asyncio.create_subprocess_exec('python', 'other.py')"),
        ("import numpy as np", "np.load('a.npy')"),
    ],
)
@pytest.mark.parametrize(
    "place", ["def step(x):\n    return {}", "def step(x):\n    {}\n    return {}"]
)
def test_what_a_step_reads_when_it_runs_is_opaque(project, tmp_path, imports, expression, place):
    for name in ("joblib", "polars", "fakenumpy"):
        (tmp_path / "site-packages").mkdir(exist_ok=True)
        (tmp_path / "site-packages" / f"{name}.py").write_text(
            "def load(x): pass\nscan_parquet = genfromtxt = load\n"
        )
    sys.path.append(str(tmp_path / "site-packages"))
    late = place.count("{}") == 2
    if imports == "import numpy as np" and not late:
        pytest.importorskip("numpy")
    body = place.format(imports, expression) if late else f"{imports}\n\n{place.format(expression)}"
    try:
        found = fingerprint(project(sample=body).step)
    finally:
        sys.path.pop()
    assert [(part.name, part.file) for part in found.opaque][:1] == [("step", "sample.py")]


def test_a_client_is_opaque_and_a_lock_is_not(project):
    found = fingerprint(
        project(
            sample="import socket, threading, logging, json\n\nLOCK = threading.RLock()\n"
            "log = logging.getLogger('a')\n"
            "SOCK = socket.socket()\nSOCK.close()\n\ndef step(x):\n"
            "    return LOCK, log, SOCK, json\n"
        ).step
    )
    assert [part.name for part in found.opaque] == ["SOCK"]


def test_a_huge_value_is_digested_or_declared_within_a_second(project):
    module = project(
        sample="BLOB = b'ab' * 50_000_000\nNUMBERS = list(range(3_000_000))\n"
        "NESTED = [[i, str(i)] for i in range(400_000)]\n\n"
        "def step(x):\n    return BLOB, NUMBERS, NESTED\n"
    )
    found = fingerprint(module.step)
    assert [(part.name, part.text) for part in found.opaque] == [
        ("NESTED", "too large to read fully")
    ]


def test_a_deep_value_ends(project):
    module = project(
        sample="DEEP = []\nfor _ in range(100_000):\n    DEEP = [DEEP]\n\ndef step(x):\n"
        "    return DEEP\n"
    )
    assert [part.name for part in fingerprint(module.step).opaque] == ["DEEP"]


def test_installed_packages_are_not_crawled(project):
    found = fingerprint(
        project(sample="import pytest\n\ndef step(x):\n    return pytest.approx(x)\n").step
    )
    assert [(part.kind, part.name, part.text) for part in found.parts[1:]] == [
        ("package", "pytest", pytest.__version__)
    ]


def test_reading_the_python_version_makes_it_count(project):
    found = fingerprint(
        project(sample="import sys\n\ndef step(x):\n    return sys.version_info > (3, 12)\n").step
    )
    assert by_name(found)["python"].text == f"{sys.version_info.major}.{sys.version_info.minor}"


# --- steps


def step_of(function, **options):
    """A step as ``pfl.handler.core.declare.step`` makes it, as far as a fingerprint looks."""
    kind = type(
        "Step",
        (),
        {
            "__module__": "pfl.handler.core.declare.step",
            "__call__": lambda self, *a: self.function(*a),
        },
    )
    made = kind()
    vars(made).update(
        {"function": function, "depends_on": (), "version": None, "retries": 0} | options
    )
    return made


def test_a_step_counts_by_its_function_and_not_by_its_options(project):
    module = project(sample="def step(x):\n    return x\n")
    first = fingerprint(step_of(module.step, retries=1))
    assert first.digest == fingerprint(step_of(module.step, retries=9)).digest
    assert "step" in by_name(first)


def test_a_step_counts_by_its_version(project):
    module = project(sample="def step(x):\n    return x\n")
    digests = {
        fingerprint(step_of(module.step, version=version)).digest for version in (None, "1", "2")
    }
    assert len(digests) == 3


def test_a_step_counts_by_what_it_depends_on(project, tmp_path):
    module = project(sample="def step(x):\n    return x\n\ndef other(x):\n    return x\n")
    (tmp_path / "prompt.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text("1")
    options = [
        (),
        (3,),
        (4,),
        (module.other,),
        (Path("prompt.txt"),),
        (Path("folder"),),
        (module.other, 3),
    ]
    digests = [fingerprint(step_of(module.step, depends_on=each)).digest for each in options]
    assert len(set(digests)) == len(digests)
    (tmp_path / "prompt.txt").write_text("b")
    (tmp_path / "folder" / "one.txt").write_text("2")
    again = [fingerprint(step_of(module.step, depends_on=each)).digest for each in options]
    assert [old == new for old, new in zip(digests, again, strict=True)] == [
        True,
        True,
        True,
        True,
        False,
        False,
        True,
    ]


def test_a_declared_file_that_is_missing_is_named(project):
    module = project(sample="def step(x):\n    return x\n")
    with pytest.raises(InvalidRequestError, match=r"nowhere\.txt, declared in sample\.py:1"):
        fingerprint(step_of(module.step, depends_on=(Path("nowhere.txt"),)))


@pytest.mark.parametrize("text", ["prompt.txt", "folder", "folder/one.txt"])
def test_a_declared_text_that_names_a_file_counts_with_its_content(project, tmp_path, text):
    module = project(sample="def step(x):\n    return x\n")
    (tmp_path / "folder").mkdir()
    digests = set()
    for content in ("a", "b"):
        (tmp_path / "prompt.txt").write_text(content)
        (tmp_path / "folder" / "one.txt").write_text(content)
        found = fingerprint(step_of(module.step, depends_on=(text,)))
        digests.add(found.digest)
        assert by_name(found)[text].kind == "declared"
        assert found.digest == fingerprint(step_of(module.step, depends_on=(Path(text),))).digest
    assert len(digests) == 2
    assert fingerprint(step_of(module.step, depends_on=("prompt",))).digest


def test_files_read_by_libraries_are_reported(project):
    module = project(
        sample="from jinja2 import FileSystemLoader\n\ndef step(x):\n"
        "    return x.read_csv('a.csv'), FileSystemLoader('pages')\n"
    )
    assert [(part.line, part.text) for part in fingerprint(module.step).opaque] == [
        (4, "reads a file, whose content does not count")
    ]


def test_a_step_used_as_a_helper_is_followed(project):
    module = project(
        sample="def inner(x):\n    return x + 1\n\ndef step(x):\n    return helper(x)\n"
    )
    module.helper = step_of(module.inner)
    first = fingerprint(module.step)
    assert "inner" in by_name(first)
    module.helper = step_of(module.inner, version="2")
    assert fingerprint(module.step).digest != first.digest


# --- the command line, processes, and reads at import


@pytest.fixture(scope="module")
def command():
    """Runs the command in a folder, in a fresh process."""
    with Fresh(7) as fresh:
        yield fresh.command


def test_the_command_prints_a_digest_and_a_table(tmp_path, command):
    (tmp_path / "sample.py").write_text(SAMPLE)
    plain, as_json = command(tmp_path, "sample:step"), command(tmp_path, "sample:step", "--json")
    found = json.loads(as_json[1])
    assert plain[1].splitlines()[0] == found["digest"]
    assert {"name", "kind", "file", "line", "digest"} <= set(found["parts"][0])
    assert found["opaque"] == []


@pytest.mark.parametrize(
    ("files", "target", "said"),
    [
        ({}, "sample", "MODULE:FUNCTION"),
        ({}, "sample:step", "No module named 'sample'"),
        ({"sample.py": "x = 1\n"}, "sample:step", "sample has no step"),
        (
            {"sample.py": "import broken\n", "broken.py": "def f(:\n"},
            "sample:step",
            "SyntaxError: invalid syntax at broken.py:1",
        ),
        (
            {"sample.py": "import broken\n", "broken.py": "\nraise OSError('no')\n"},
            "sample:step",
            "OSError: no at broken.py:2",
        ),
        ({"sample.py": "import nowhere\n"}, "sample:step", "sample.py:1"),
        ({"sample.py": "step = len\n"}, "sample:step", "no Python source"),
        ({"sample.py": "raise SystemExit(5)\n"}, "sample:step", "SystemExit: 5 at sample.py:1"),
        ({}, ".sample:step", "invalid function"),
        (
            {"sample.py": LAZY},
            "sample:lazy.step",
            "RuntimeError: step at sample.py:4",
        ),
        (
            {"sample.py": LAZY},
            "sample:lazy",
            "a Lazy has no Python source",
        ),
    ],
)
def test_the_command_says_what_is_wrong_and_where(tmp_path, command, files, target, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = command(tmp_path, target)
    assert (code, out) == (2, "")
    assert said in err


def test_the_command_without_a_target_is_wrong_usage(tmp_path, command):
    code, _, err = command(tmp_path)
    assert code == 2 and "usage" in err


def test_reads_at_import_are_recorded(tmp_path, monkeypatch):
    (tmp_path / "conf.json").write_text('{"a": 1}')
    (tmp_path / "other.py").write_text("B = 2\n")
    (tmp_path / "sample.py").write_text(
        "import json, os, pathlib, other\n"
        "A = json.loads((pathlib.Path(__file__).parent / 'conf.json').read_text())\n"
        "R = os.environ.get('PFL_SOME'), os.getenv('PFL_MORE'), 'PFL_ASKED' in os.environ\n"
        "B = os.environb.get(b'PFL_BYTES')\n"
        "FOLDER = os.path.dirname(__file__)\n"
        "E = os.path.exists(os.path.join(FOLDER, 'flag')), os.listdir(FOLDER)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with record_reads() as reads:
        importlib.import_module("sample")
    seen = {kind: set(states) for kind, states in reads.seen.items()}
    assert seen["files"] == {str(tmp_path / "conf.json")}
    assert seen["env"] == {"PFL_SOME", "PFL_MORE", "PFL_ASKED", "PFL_BYTES"}
    assert (seen["looked"], seen["listings"]) == ({str(tmp_path / "flag")}, {str(tmp_path)})
    assert not reads.asked_others
    os.environ.get("PFL_LATER")
    (tmp_path / "conf.json").read_text()
    assert len(reads.seen["files"]) == 1 and "PFL_LATER" not in reads.seen["env"]
    for name in ("sample", "other"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import subprocess\nA = subprocess.check_output(['true'])\n", True),
        ("import os\nA = os.system('true')\n", True),
        (
            (
                "import socket\nwith socket.socket(socket.AF_UNIX) as s:\n"
                "    A = s.connect_ex('/nowhere')\n"
            ),
            True,
        ),
        ("import math\nA = math.pi\n", False),
    ],
)
def test_what_no_file_tells_is_recorded(tmp_path, monkeypatch, text, said):
    (tmp_path / "conf.json").write_text("{}")
    (tmp_path / "sample.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with record_reads() as reads:
        importlib.import_module("sample")
    assert bool(reads.asked_others) == said
    assert not reads.asked_others or reads.asked_others.startswith(f"{tmp_path}/sample.py:")
    sys.modules.pop("sample")


def test_recording_leaves_the_environment_as_it_was():
    def look():
        return [type(os.environ), os.environb.__class__, os.stat]

    before = look()
    with record_reads(), record_reads():
        pass
    assert before == look()


def test_threads_may_fingerprint_at_the_same_time(project):
    module = project(sample=SAMPLE)
    expected = fingerprint(module.step).digest
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fingerprint(module.step).digest))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
