"""
Fingerprints in fresh processes, quickly: a child is forked for each before anything of a project is imported.

Reads one job a line from stdin (``folder``, ``target``, ``path``), writes one reply a line to stdout.
"""

import json
import os
import sys
import traceback

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from handler.core.fingerprint.__main__ import main  # noqa: E402  the line above finds it


def child(job):
    """Print the fingerprint, as the command would in that folder; returns the exit code."""
    os.chdir(job["folder"])
    sys.path[1:1] = [job["folder"], *job["path"]]
    try:
        return main([job["target"], "--json"])
    except BaseException:
        traceback.print_exc()
        return 1


def run(job):
    """Fork for one job; returns what it printed, and its exit code."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)
        code = child(job)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return {"said": said, "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
