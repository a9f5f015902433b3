"""What may import what, and what a hit loads: shown in a fresh process, and by walking the source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = ("pfl.handler.core", "pfl.handler.engine", "handler", "flows", "serverless", "cli")
# cli → serverless → pfl.handler.engine → flows → pfl.handler.core; the face of a flow author and the entry stand in handler itself.
MAY_IMPORT = {
    "pfl.handler.core": {"pfl.handler.core"},
    "pfl.handler.engine": {"pfl.handler.engine", "handler", "pfl.handler.core", "flows"},
    "handler": {"handler", "pfl.handler.core", "pfl.handler.engine"},
    "flows": {"flows", "handler"},
    "serverless": {"serverless", "handler", "pfl.handler.core", "pfl.handler.engine", "flows"},
    "cli": set(ROOMS),
}
HEAVY = (
    "prefect",
    "prefect_aws",
    "boto3",
    "botocore",
    "pydantic",
    "rich",
    "typer",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
)


def loaded_after(code: str, cwd: Path = ROOT, **environ: str) -> set[str]:
    """The modules of a fresh process that ran *code*."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    env = os.environ | {} | environ
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@cache
def loaded_by_python() -> set[str]:
    return loaded_after("pass")


def roots(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def room(module: str) -> str | None:
    """The room that a module is in; None for one that is not ours."""
    return next((each for each in ROOMS if module == each or module.startswith(f"{each}.")), None)


def sources() -> list[tuple[str, Path]]:
    found = []
    for top in ("handler", "flows", "serverless", "cli"):
        for path in sorted((ROOT / top).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
                ".__init__"
            )
            found.append((module, path))
    return found


def imported(module: str, path: Path) -> set[str]:
    """The modules that a file names in its imports, those inside functions too, and not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        ):
            node.body = []
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [
                        *package.split(".")[: len(package.split(".")) - node.level + 1],
                        *filter(None, [base]),
                    ]
                )
            for alias in node.names:
                inner = ROOT / Path(*base.split("."), alias.name)
                names.add(
                    f"{base}.{alias.name}"
                    if inner.with_suffix(".py").exists() or inner.is_dir()
                    else base
                )
    return names


@pytest.mark.parametrize(("module", "path"), sources(), ids=[module for module, _ in sources()])
def test_a_module_imports_only_from_the_rooms_it_may(module, path):
    wrong = {name for name in imported(module, path) if room(name) is not None} - {
        name for name in imported(module, path) if room(name) in MAY_IMPORT[room(module)]
    }
    assert wrong == set()


@pytest.mark.parametrize(
    ("module", "path"), [each for each in sources() if room(each[0]) == "pfl.handler.core"]
)
def test_core_names_nothing_but_the_standard_library_and_obstore(module, path):
    foreign = (
        {name.split(".")[0] for name in imported(module, path)}
        - sys.stdlib_module_names
        - {"handler", "obstore"}
    )
    assert foreign == set()


def test_every_arrow_of_the_house_points_one_way():
    """No two rooms import each other, but for the entry, which hands a miss to the engine when there is one."""
    arrows = {
        (room(m), room(name)) for m, path in sources() for name in imported(m, path) if room(name)
    } - {(r, r) for r in ROOMS}
    both = {frozenset(pair) for pair in arrows if pair[::-1] in arrows}
    assert both <= {frozenset({"handler", "pfl.handler.engine"})}
    assert ("pfl.handler.core", "handler") not in arrows


def test_the_engine_is_imported_by_the_entry_only_inside_a_function():
    for name in ("__init__", "entry", "face"):
        tree = ast.parse((ROOT / "handler" / f"{name}.py").read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert "engine" not in " ".join(ast.unparse(node) for node in top)


@pytest.mark.parametrize(
    "module",
    [
        module
        for module, _ in sources()
        if room(module) == "pfl.handler.core" and "__main__" not in module
    ],
)
def test_a_module_of_core_loads_only_the_standard_library_obstore_and_core(module):
    new = loaded_after(f"import {module}") - loaded_by_python()
    # _sysconfigdata_… is the standard library too, under a name that each build of Python makes up.
    assert {
        name for name in roots(new) if not name.startswith("_sysconfigdata")
    } <= sys.stdlib_module_names | {"handler", "obstore"}
    assert {name for name in new if room(name)} <= {"handler"} | {
        name for name in new if room(name) == "pfl.handler.core"
    }


HIT = """
from pfl.handler.entry import lambda_handler
reply = lambda_handler({"id": "abc"})
assert [row["status"] for row in reply["steps"]] == ["hit"] * 3, reply
assert reply["store"] == {"get": 1}, reply
"""


def check_a_hit(modules: set[str]) -> None:
    assert roots(modules) & set(HEAVY) == set()
    assert {
        name
        for name in modules
        if room(name) in ("flows", "pfl.handler.engine", "cli", "serverless")
    } == set()


def test_a_hit_loads_no_prefect_no_boto3_and_no_flow(project):
    project.call()
    check_a_hit(loaded_after(HIT, project.root))


def test_a_hit_on_s3_loads_no_boto3_either(project, bucket, s3_env):
    project.knobs["store"] = f"s3://{bucket}/pfl"
    project.call()
    check_a_hit(loaded_after(HIT, project.root, PFL_STORE=f"s3://{bucket}/pfl", **s3_env))


def test_a_hit_in_an_image_loads_no_flow(project, tmp_path):
    project.call()
    baked = tmp_path / "manifest.json"
    baked.write_bytes((project.root / ".pfl" / "manifest.json").read_bytes())
    check_a_hit(loaded_after(HIT, project.root, PFL_MANIFEST=str(baked)))


def test_a_refused_event_loads_nothing_heavy(project):
    project.call()
    code = "from pfl.handler.entry import lambda_handler\nassert lambda_handler({'id': ''})['status'] == 'invalid'"
    check_a_hit(loaded_after(code, project.root))


def test_a_direct_computation_loads_no_prefect(project):
    code = "from pfl.handler.entry import lambda_handler\nassert lambda_handler({'id': 'abc'})['status'] == 'completed'"
    modules = loaded_after(code, project.root, PFL_ENGINE="direct")
    assert roots(modules) & set(HEAVY) == set()
    assert "flows.pipeline" in modules


def test_declaring_a_flow_loads_no_prefect(project):
    modules = loaded_after(
        "import flows.pipeline", project.root, PYTHONPATH=f"{project.root}{os.pathsep}{ROOT}"
    )
    assert roots(modules) & set(HEAVY) == set()
    assert {name for name in modules if room(name) == "pfl.handler.engine"} == set()
