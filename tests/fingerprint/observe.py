"""
What functions do and what their fingerprints are, each in a fresh process: for ``histories.py``.

``observe.py [FILE:FUNCTION]`` reads one job a line from stdin and writes one reply a line to
stdout. A child is forked for each job and imports the modules. It forks a child for each function,
which calls it under a tracer, and one that fingerprints all functions.

A job has *root* (the folder to import from), *checkout* (the folder of the project's code),
*targets* (``MODULE:FUNCTION``, called without arguments), *order* (in which they are
fingerprinted) and *outputs* (functions that return these are not fingerprinted). A reply has
*seconds* (of importing) and *targets* (for each, what `Observed` holds), or *error*. FILE:FUNCTION
takes the place of the fingerprint: a test of the runner needs one that is wrong.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import importlib
import importlib.util
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypedDict

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# A mutant may never end, and may ask for all memory.
CALL_SECONDS = 20
SECONDS = 300
BYTES = 4 << 30

Fingerprinter = Callable[[Any], Any]


class Observed(TypedDict, total=False):
    """
    What is known about one function.

    Args:
        digest: Its fingerprint.
        parts: The parts of the fingerprint, as `Part.to_json` gives them.
        opaque: The same for what the fingerprint cannot know.
        seconds: Processor time of the fingerprint.
        output: What the function returned or raised, as text.
        executed: File (relative to the checkout), first line and qualified name of each piece of
            the project's code that ran.
        lines: The lines that ran, by file.
        reads: The globals that this code reads, by module and name, if they are plain data.
        error: Why there is no fingerprint.
    """

    digest: str
    parts: list[dict[str, Any]]
    opaque: list[dict[str, Any]]
    seconds: float
    output: str
    executed: list[tuple[str, int, str]]
    lines: dict[str, list[int]]
    reads: dict[str, str]
    error: str


def load_fingerprint(place: str | None) -> Fingerprinter:
    """The fingerprint of this checkout, or the function at ``FILE:FUNCTION``."""
    sys.path[0] = ROOT
    load("pfl", os.path.join(ROOT, "__init__.py"), [ROOT])
    function: Fingerprinter = importlib.import_module("pfl.handler.core.fingerprint").fingerprint
    if place:
        file, _, name = place.rpartition(":")
        function = getattr(load("other_fingerprint", file), name)
    return function


def load(name: str, file: str, folders: list[str] | None = None) -> Any:
    """The module in *file*."""
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forked(work: Callable[[], dict[str, Any]], limit: int = SECONDS) -> dict[str, Any]:
    """What *work* returns in a child of this process; ``{"error": …}`` if it fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.alarm(limit)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        try:
            reply = work()
        except BaseException:
            reply = {"error": traceback.format_exc()[-800:]}
        with contextlib.suppress(BaseException), open(write, "w") as pipe:
            json.dump(reply, pipe)
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    reply = json.loads(said) if said else {"error": f"the process ended with {code}"}
    return dict(reply)


def observe(job: dict[str, Any], fingerprint: Fingerprinter) -> dict[str, Any]:
    """Import the module of *job* and look at each of its functions."""
    os.chdir(job["root"])
    sys.path.insert(0, job["root"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    start = time.process_time()
    for target in job["targets"]:
        importlib.import_module(target.partition(":")[0])
    seconds = time.process_time() - start
    functions = {target: function_at(target) for target in job["targets"]}

    ran = {target: call(function, job["checkout"]) for target, function in functions.items()}
    known = job["outputs"]
    wanted = [target for target in job["order"] if ran[target]["output"] != known.get(target)]

    def digests() -> dict[str, Any]:
        # As one command fingerprints all flows.
        return {target: digest(functions[target], fingerprint) for target in wanted}

    found = forked(digests)
    for target in wanted:
        ran[target] |= found if "error" in found else found[target]
    return {"seconds": seconds, "targets": ran}


def function_at(target: str) -> Callable[[], object]:
    """The function at ``MODULE:FUNCTION``, whose module is imported."""
    module, _, name = target.partition(":")
    function: Callable[[], object] = getattr(sys.modules[module], name)
    return function


def digest(function: Callable[[], object], fingerprint: Fingerprinter) -> dict[str, Any]:
    """The fingerprint of a function, or why there is none."""
    start = time.process_time()
    try:
        found = fingerprint(function)
    except Exception:
        return {"error": traceback.format_exc()[-800:]}
    return {**found.to_json(), "seconds": time.process_time() - start}


def call(function: Callable[[], object], checkout: str) -> dict[str, Any]:
    """What a function does in a process of its own, and the data that it reads."""
    ran = forked(lambda: trace(function, checkout), CALL_SECONDS)
    if "error" in ran:
        # A mutant that kills its process has an output of its own, too.
        ran = {"output": ran["error"].splitlines()[-1], "executed": [], "lines": {}, "globals": []}
    # Read here, where nothing has run that may have changed them.
    reads = {f"{module}:{name}": plain_global(module, name) for module, name in ran.pop("globals")}
    return {**ran, "reads": {key: value for key, value in reads.items() if value}}


def trace(function: Callable[[], object], checkout: str) -> dict[str, Any]:
    """Call *function* and record which code of the project runs."""
    inside = os.path.join(checkout, "")
    codes: dict[CodeType, str] = {}
    lines: dict[str, set[int]] = {}

    def on_line(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            lines[frame.f_code.co_filename].add(frame.f_lineno)
        return on_line

    def on_call(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(inside):
            return None
        codes.setdefault(code, frame.f_globals.get("__name__", ""))
        lines.setdefault(code.co_filename, set())
        return on_line

    sys.settrace(on_call)
    try:
        output = repr(function())
    except Exception as exc:
        output = f"raised {type(exc).__name__}: {exc}"
    finally:
        sys.settrace(None)
    executed = {
        (code.co_filename.removeprefix(inside), code.co_firstlineno, code.co_qualname)
        for code in codes
    }
    return {
        "output": output.replace(checkout, "<checkout>"),
        "executed": sorted(executed),
        "lines": {file.removeprefix(inside): sorted(found) for file, found in lines.items()},
        "globals": sorted({pair for code in codes for pair in globals_read(code, codes[code])}),
    }


def globals_read(code: CodeType, module: str) -> list[tuple[str, str]]:
    """Module and name of each global that *code* loads."""
    loads = [each for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"]
    return [(module, each.argval) for each in loads if not each.argval.startswith("__")]


class NotPlainError(Exception):
    """A value is more than data."""


def plain_global(module: str, name: str) -> str | None:
    """The value of a global as text; None if it is more than data, or is not there."""
    try:
        return plain(vars(sys.modules[module])[name])
    except (NotPlainError, KeyError, RecursionError):
        return None


def plain(value: object) -> str:
    """Data as text that is equal for equal data."""
    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str, bytes):
        return f"{kind.__name__}:{value!r}"
    if isinstance(value, re.Pattern):
        return f"pattern:{value.pattern!r}:{value.flags}"
    if isinstance(value, enum.Enum):
        return f"{kind.__name__}.{value.name}={plain(value.value)}"
    if kind in (tuple, list):
        return f"{kind.__name__}:[{','.join(map(plain, value))}]"  # type: ignore[call-overload]
    if kind in (set, frozenset):
        return f"{kind.__name__}:[{','.join(sorted(map(plain, value)))}]"  # type: ignore[call-overload]
    if isinstance(value, dict) and kind is dict:
        return f"dict:[{','.join(f'{plain(key)}:{plain(value[key])}' for key in value)}]"
    raise NotPlainError(kind.__name__)


def main(place: str | None) -> None:
    """Serve jobs until stdin ends."""
    fingerprint = load_fingerprint(place)
    for line in sys.stdin:
        job = json.loads(line)
        reply = forked(lambda job=job: observe(job, fingerprint))  # type: ignore[misc]
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
