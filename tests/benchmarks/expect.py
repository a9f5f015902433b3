"""
What a call costs in counts: ``python tests/benchmarks/expect.py`` writes ``expected.json``.

A test compares that file with what it counts: requests to the store by verb, objects written by
folder, requests to Prefect, and the modules outside the standard library that a hit imports. Times
are left to ``bench.py``. After an intended change, run the command, so that a review sees the
difference.
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
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [place for place in sys.path if place != _HERE]
sys.path.insert(0, str(Path(_HERE).parent))

from benchmarks.relay import Relay  # noqa: E402

_CALL = """
import json, sys
before = set(sys.modules)
from collections import Counter
from pfl.handler.core.store import objects as store
objects = Counter()
put = store.Store.put
def counted(self, key, data, **options):
    objects[key.split("/")[0]] += 1
    return put(self, key, data, **options)
store.Store.put = counted
from pfl.handler.entry import lambda_handler
reply = lambda_handler({"id": "abc"})
assert reply["status"] == "completed", reply
# _sysconfigdata… is the standard library's too, under a name that each build of Python makes up.
imports = sorted(
    name
    for name in sys.modules.keys() - before
    if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("_sysconfigdata")
)
steps = [row["status"] for row in reply["steps"]]
counts = {"steps": steps, "store": reply["store"], "objects": objects, "imports": imports}
print(json.dumps(counts))
"""


def measure(project: Path, environ: dict[str, str], api: str, s3: dict[str, str]) -> dict:
    """
    What calls of the shipped flow cost.

    Args:
        project: A directory with ``flows/``.
        environ: The environment of the calls.
        api: Prefect's API.
        s3: Variables that name an S3, ``PFL_STORE`` included.
    """
    found: dict = {}
    # A slow call would renew its lease, which costs requests.
    environ = environ | {"PFL_LEASE_S": "3600"}
    for name, variables in (("directory", {"PFL_STORE": str(project / "kept")}), ("s3", s3)):
        if name == "directory":
            (project / "kept").mkdir()
        # Makes the manifest, which is not part of the cost of a call.
        _call(project, environ | variables | {"PFL_STORE": variables["PFL_STORE"] + "-first"}, name)
        found[f"miss, {name}, direct"] = _without_imports(_call(project, environ | variables, name))
        found[f"hit, {name}"] = _call(project, environ | variables, name)
    with Relay(int(api.split(":")[2].split("/")[0])) as relay:
        (project / "told").mkdir()
        variables = {
            "PFL_STORE": str(project / "told"),
            "PFL_ENGINE": "prefect",
            "PREFECT_API_URL": f"{relay.url}/api",
            "PFL_ARTIFACTS": "off",
        }
        found["miss, directory, prefect"] = _without_imports(
            _call(project, environ | variables, "directory")
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


def _without_imports(counts: dict) -> dict:
    return {name: each for name, each in counts.items() if name != "imports"}


def _paths(asked: Counter) -> dict[str, int]:
    """
    Requests by path, with IDs left out.

    Requests whose number depends on the clock are left out: batches of logs and events, and
    checks for a cancellation.
    """
    found: Counter = Counter()
    for request, count in asked.items():
        path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", request.split("?")[0]).replace(
            "/api/", "/"
        )
        if not path.endswith(("/logs/", "/events", "GET /flow_runs/…")):
            found[path] += count  # A refused request does not count.
    return dict(sorted((+found).items()))


def main() -> None:
    """Measure with servers of its own, and write."""
    from benchmarks.rig import Rig

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
