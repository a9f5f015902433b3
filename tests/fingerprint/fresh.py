"""
Fingerprints in fresh processes: a child is forked for each before any project is imported.

``fresh.py [PACKAGE FOLDER…]`` imports that package for all. Reads one job a line from stdin
(``folder``, ``arguments``, ``path``), writes one reply a line to stdout (``code``, ``out``,
``err``).
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[0] = ROOT

# The checkout is the package; an interpreter without it installed needs this.
spec = spec_from_file_location(
    "pfl", os.path.join(ROOT, "__init__.py"), submodule_search_locations=[ROOT]
)
sys.modules["pfl"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pfl"])
import_module("pfl.handler.core.fingerprint")
spec = spec_from_file_location(
    "fingerprint_command", os.path.join(ROOT, "tests", "fingerprint", "command.py")
)
command = module_from_spec(spec)
spec.loader.exec_module(command)


def run(job):
    """Run the command in a child, in the job's folder."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(job["folder"])
            sys.path[1:1] = [job["folder"], *job["path"]]
            try:
                code = command.main(job["arguments"])
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [file.seek(0) or file.read().decode(errors="replace") for file in (out, err)]
    return {"code": code, "out": said[0], "err": said[1]}


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    if sys.argv[1]:
        __import__(sys.argv[1])
    gc.freeze()  # what is here already is not looked at, so not copied, in each child
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
