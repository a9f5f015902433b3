"""What may import what, from the source; and what a hit loads, in a fresh process."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# Each room, lowest first; a room in it is one of its own. See the map in CONTRIBUTING.
ROOMS = (
    "pfl.handler.core",  # errors, settings, links: what every room may use
    "pfl.handler.core.store",
    "pfl.handler.core.fingerprint",
    "pfl.handler.core.declare",
    "pfl.handler.core.event",
    "pfl.handler.core.envelope",
    "pfl.handler.core.cache",
    "pfl.handler.engine",
    "pfl.handler.engine.prefect",
    "pfl.handler",
    "pfl",
    "flows",
    "pfl.serverless",
    "pfl.cli",
)
_CORE = {room for room in ROOMS if room.startswith("pfl.handler.core")}
_STORE = {"pfl.handler.core", "pfl.handler.core.store"}
_DECLARE = _STORE | {"pfl.handler.core.fingerprint", "pfl.handler.core.declare"}
_EVENT = _DECLARE | {"pfl.handler.core.event"}
_ENGINE = {"pfl.handler.engine", "pfl.handler.engine.prefect"}
MAY_IMPORT = {
    "pfl.handler.core": {"pfl.handler.core"},
    "pfl.handler.core.store": _STORE,
    "pfl.handler.core.fingerprint": {"pfl.handler.core", "pfl.handler.core.fingerprint"},
    "pfl.handler.core.declare": _DECLARE,
    "pfl.handler.core.event": _EVENT,
    "pfl.handler.core.envelope": _EVENT | {"pfl.handler.core.envelope"},
    "pfl.handler.core.cache": _EVENT | {"pfl.handler.core.cache"},
    "pfl.handler.engine": _CORE | _ENGINE,
    "pfl.handler.engine.prefect": _CORE | _ENGINE,
    "pfl.handler": _CORE | _ENGINE | {"pfl.handler"},
    "pfl": {"pfl.handler", *_CORE},
    "flows": {"flows", "pfl"},
    "pfl.serverless": {"pfl", "pfl.handler", "pfl.serverless", *_CORE, *_ENGINE},
    "pfl.cli": set(ROOMS),
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
    """The innermost room that a module is in; None for one that is not ours."""
    inside = (each for each in ROOMS if module == each or module.startswith(f"{each}."))
    return max(inside, key=len, default=None)


def is_core(module: str) -> bool:
    return (room(module) or "").startswith("pfl.handler.core")


def sources() -> list[tuple[str, Path]]:
    """Every module of the package, with its file."""
    found = [("pfl", ROOT / "__init__.py")]
    for top in ("handler", "flows", "serverless", "cli"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if "node_modules" in path.parts:
                continue
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
                ".__init__"
            )
            # A flow is imported as its project knows it, wherever the project is.
            found.append((module if top == "flows" else f"pfl.{module}", path))
    return found


def imported(module: str, path: Path, *, for_types: bool = False) -> set[str]:
    """The modules that a file imports, in functions too, and with *for_types* for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            not for_types
            and isinstance(node, ast.If)
            and ast.unparse(node.test)
            in (
                "TYPE_CHECKING",
                "typing.TYPE_CHECKING",
            )
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
                inner = ROOT / Path(*base.removeprefix("pfl").strip(".").split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                names.add(f"{base}.{alias.name}" if is_module else base)
    return names


def test_the_wheel_has_a_package_for_every_folder_with_python_files():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    listed = setuptools["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for _, path in sources()}
    assert listed == sorted(".".join(("pfl", *folder.parts)) for folder in folders)


@pytest.mark.parametrize(("module", "path"), sources(), ids=[module for module, _ in sources()])
def test_a_module_imports_only_from_the_rooms_it_may(module, path):
    wrong = {name for name in imported(module, path) if room(name) is not None} - {
        name for name in imported(module, path) if room(name) in MAY_IMPORT[room(module)]
    }
    assert wrong == set()


@pytest.mark.parametrize(("module", "path"), [each for each in sources() if is_core(each[0])])
def test_core_names_nothing_but_the_standard_library_and_obstore(module, path):
    named = {name.split(".")[0] for name in imported(module, path)}
    assert named <= sys.stdlib_module_names | {"pfl", "obstore"}


def test_no_two_rooms_import_each_other():
    """Except the two rooms of the engine, which pass each other runs; no files form a circle."""
    arrows = {(room(m), room(name)) for m, path in sources() for name in imported(m, path)}
    both = {frozenset(pair) for pair in arrows if pair[::-1] in arrows and pair[0] != pair[1]}
    assert both <= {
        frozenset({"pfl.handler.engine", "pfl.handler.engine.prefect"}),
    }


def test_no_files_import_each_other_in_a_circle():
    """Nor do they inside functions or for types, where Python would not mind."""
    known = {module for module, _ in sources()}
    onward = {
        module: sorted(imported(module, path, for_types=True) & known) for module, path in sources()
    }
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for each in onward[module]:
                follow(each, (*way, module))
            done.add(module)

    for module in known:
        follow(module, ())


def test_the_engine_is_imported_by_the_handler_only_inside_a_function():
    for path in (ROOT / "__init__.py", *(ROOT / "handler").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert "engine" not in " ".join(ast.unparse(node) for node in top)


@pytest.mark.parametrize(
    "module",
    [module for module, _ in sources() if is_core(module) and "__main__" not in module],
)
def test_a_module_of_core_loads_only_the_standard_library_obstore_and_core(module):
    new = loaded_after(f"import {module}") - loaded_by_python()
    # _sysconfigdata_… is part of the standard library, under a name that depends on the build.
    named = {name for name in roots(new) if not name.startswith("_sysconfigdata")}
    assert named <= sys.stdlib_module_names | {"pfl", "obstore"}
    ours = {name for name in new if room(name) and not is_core(name)}
    assert ours <= {"pfl", "pfl.handler"}


IMPORT = "from pfl.handler.entry import lambda_handler\n"
HIT = f"""
{IMPORT}
reply = lambda_handler({{"id": "abc"}})
assert [row["status"] for row in reply["steps"]] == ["hit"] * 3, reply
assert reply["store"] == {{"get": 1}}, reply
"""


def check_a_hit(modules: set[str]) -> None:
    assert roots(modules) & set(HEAVY) == set()
    heavy = ("flows", "pfl.cli", "pfl.handler.engine", "pfl.serverless")
    assert {name for name in modules if name.startswith(heavy)} == set()


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
    [remembered] = (project.root / ".pfl").glob("manifest-*.json")
    baked.write_bytes(remembered.read_bytes())
    check_a_hit(loaded_after(HIT, project.root, PFL_MANIFEST=str(baked)))


def test_a_refused_event_loads_nothing_heavy(project):
    project.call()
    code = f"{IMPORT}assert lambda_handler({{'id': ''}})['status'] == 'invalid'"
    check_a_hit(loaded_after(code, project.root))


def test_a_direct_computation_loads_no_prefect(project):
    code = f"{IMPORT}assert lambda_handler({{'id': 'abc'}})['status'] == 'completed'"
    modules = loaded_after(code, project.root, PFL_ENGINE="direct")
    assert roots(modules) & set(HEAVY) == set()
    assert "flows.pipeline" in modules


def test_declaring_a_flow_loads_no_prefect(project):
    modules = loaded_after("import flows.pipeline", project.root, PYTHONPATH=str(project.root))
    assert roots(modules) & set(HEAVY) == set()
    assert {name for name in modules if name.startswith("pfl.handler.engine")} == set()
