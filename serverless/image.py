"""
The image: its digest, its build and its push, with whichever of docker, podman and buildah works
here.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..handler.core.errors import InvalidRequestError, PflError, UnavailableError

# What the Dockerfile copies, and what it is built with.
_PARTS = (
    "__init__.py",
    "flows",
    "handler",
    "pyproject.toml",
    "constraints.txt",
    "serverless/Dockerfile",
    "serverless/__init__.py",
    "serverless/extension.py",
    ".dockerignore",
)
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}

Report = Callable[[str], None]


def tool() -> str:
    """
    Return the first of docker, podman and buildah that works; docker does not without its engine.

    Raises:
        InvalidRequestError: None of them does.
    """
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name):
            done = subprocess.run([name, "info"], capture_output=True)
            if not done.returncode:
                return name
    raise InvalidRequestError(
        "no working container tool found",
        hint="docker with its engine running, podman or buildah; or --image",
    )


def digest(root: Path, arch: str) -> str:
    """Return 64 hex digits for the content of an image: the same files have the same digest."""
    hashed = hashlib.sha256(arch.encode())
    for part in _PARTS:
        top = root / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                hashed.update(f"\0{path.relative_to(root)}\0{content}".encode())
    return hashed.hexdigest()


def build(
    name: str,
    root: Path,
    tag: str,
    *,
    arch: str = "x86_64",
    options: Sequence[str] = (),
    report: Report,
) -> None:
    """
    Build the image of the project at *root* as *tag*.

    Args:
        name: The container tool, see :func:`tool`.
        root: The project.
        tag: The image's name and tag.
        arch: ``x86_64`` or ``arm64``.
        options: More options for the container tool.
        report: Called with each line that the container tool prints.

    Raises:
        InvalidRequestError: It cannot be built; the end of the tool's output is the reason.
    """
    command = [name, "bud", "--layers", "--force-rm"] if name == "buildah" else [name, "build"]
    command += ["--platform", PLATFORMS[arch], *options, "-t", tag]
    run(
        [*command, "-f", str(root / "serverless" / "Dockerfile"), str(root)],
        "the image cannot be built",
        hint="see the output of the build above",
        report=report,
        error=InvalidRequestError,
    )


def push(name: str, tag: str, *, user: str, password: str, report: Report) -> None:
    """
    Push *tag* to its registry.

    Raises:
        UnavailableError: The registry refused it.
    """
    host = tag.split("/")[0]
    is_local = host.partition(":")[0] in ("localhost", "127.0.0.1")
    plain = ["--tls-verify=false"] if is_local and name != "docker" else []
    login = subprocess.run(
        [name, "login", *plain, "--username", user, "--password-stdin", host],
        input=password,
        capture_output=True,
        text=True,
    )
    if login.returncode:
        raise UnavailableError(f"the registry {host} refused the login", why=login.stderr.strip())
    run(
        [name, "push", *plain, tag],
        f"{tag} was not pushed",
        hint="check that the credentials allow ecr:PutImage, ecr:InitiateLayerUpload, "
        "ecr:UploadLayerPart and ecr:CompleteLayerUpload",
        report=report,
    )


def run(
    command: Sequence[str],
    failure: str,
    *,
    hint: str = "",
    report: Report,
    error: type[PflError] = UnavailableError,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """
    Run a command and report each line that it prints.

    Raises:
        PflError: It failed. *failure* is what happened, and the error or the end of its output why.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        cwd=cwd,
        env=env,
    ) as process:
        try:
            for line in process.stdout or ():
                if line.strip():
                    lines.append(line.rstrip())
                    report(lines[-1])
        except BaseException:
            # If we are interrupted, the command has to stop, too.
            process.terminate()
            raise
    if process.returncode:
        errors = itertools.dropwhile(lambda line: not line.lower().startswith("error"), lines)
        raise error(failure, why="\n".join([*errors][:6] or lines[-5:]), hint=hint)
