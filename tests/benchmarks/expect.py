"""
What a call costs in counts: ``python tests/benchmarks/expect.py`` writes ``expected.json``, which a test compares with what it counts.

Counts and names alone, of fresh processes: requests to the store by verb, objects written by folder, requests to Prefect, and the
modules that a hit imports besides the standard library's. Times are ``pfl bench``'s. Whoever changes a number here on purpose runs
the command, and the change is seen in the review.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).with_name("expected.json")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

_CALL = """
import json, sys
before = set(sys.modules)
from collections import Counter
from pfl.handler.core.store import objects as store
objects, put = Counter(), store.Store.put
def counted(self, key, data, **more):
    objects[key.split("/")[0]] += 1
    return put(self, key, data, **more)
store.Store.put = counted
from pfl.handler.entry import lambda_handler
reply = lambda_handler({"id": "abc"})
assert reply["status"] == "completed", reply
# sysconfig's data is the standard library's, under a name that each build of Python makes up.
foreign = [name for name in sys.modules.keys() - before if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("_sysconfigdata")]
print(json.dumps({"steps": [row["status"] for row in reply["steps"]], "store": reply["store"], "objects": objects, "imports": sorted(foreign)}))
"""


def measure(project: Path, environ: dict[str, str], api: str, s3: dict[str, str]) -> dict:
    """
    What calls of the shipped flow cost.

    Args:
        project: A directory with ``flows/``.
        environ: The variables of a process.
        api: Prefect's API.
        s3: Variables that name an S3, ``PFL_STORE`` included.
    """
    from pfl.cli.benchmark.relay import Relay

    found: dict = {}
    environ = environ | {
        "PFL_LEASE_S": "3600"
    }  # A call that takes long is not to say in between that it lives.
    for name, more in (("directory", {"PFL_STORE": str(project / "kept")}), ("s3", s3)):
        if name == "directory":
            (project / "kept").mkdir()
        _call(
            project, environ | more | {"PFL_STORE": more["PFL_STORE"] + "-first"}, name
        )  # Makes the manifest, which is no part of a call's cost.
        found[f"miss, {name}, direct"] = _without_imports(_call(project, environ | more, name))
        found[f"hit, {name}"] = _call(project, environ | more, name)
    with Relay(int(api.split(":")[2].split("/")[0])) as relay:
        (project / "told").mkdir()
        more = {
            "PFL_STORE": str(project / "told"),
            "PFL_ENGINE": "prefect",
            "PREFECT_API_URL": f"{relay.url}/api",
            "PFL_ARTIFACTS": "off",
        }
        found["miss, directory, prefect"] = _without_imports(
            _call(project, environ | more, "directory")
        ) | {"api": _paths(relay.asked)}
    return found


def _call(project: Path, environ: dict[str, str], name: str) -> dict:
    if name == "directory":
        Path(environ["PFL_STORE"]).mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _CALL], cwd=project, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _without_imports(told: dict) -> dict:
    return {name: each for name, each in told.items() if name != "imports"}


def _paths(asked: Counter) -> dict[str, int]:
    """Requests by path, IDs left out, without those whose number depends on the clock: batches of logs and events, looks for a cancellation."""
    found: Counter = Counter()
    for request, count in asked.items():
        path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", request.split("?")[0]).replace(
            "/api/", "/"
        )
        if not path.endswith(("/logs/", "/events/in", "GET /flow_runs/…")):
            found[path] += count  # One that was refused does not count.
    return dict(sorted((+found).items()))


def main() -> None:
    """Measure with servers of our own, and write."""
    from pfl.cli.benchmark.rig import Rig

    with Rig(lambda text: print(text, file=sys.stderr)) as rig:
        project = rig.place / "shipped"
        project.mkdir()
        subprocess.run(["cp", "-R", str(ROOT / "flows"), str(project)], check=True)
        rig.s3()
        environ = rig.bare_environ() | {
            "PFL_PROJECT": str(project),
            "PFL_ENGINE": "direct",
            "PREFECT_HOME": str(rig.place / "home"),
        }
        found = measure(
            project,
            environ,
            f"{rig.api(0).url}/api",
            rig.s3_env | {"PFL_STORE": "s3://bench/expect"},
        )
    EXPECTED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {os.path.relpath(EXPECTED)}")


if __name__ == "__main__":
    main()
