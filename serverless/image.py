"""
The image: its digest, its build and its push, with whichever of docker, podman and buildah works
here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..handler.core.errors import InvalidRequestError, UnavailableError

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


def tool() -> str | None:
    """
    Return the first of docker, podman and buildah that works; docker does not without its engine.
    """
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name):
            done = subprocess.run([name, "info"], capture_output=True, check=False)
            if done.returncode == 0:
                return name
    return None


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
    lines = failed_lines(
        [*command, "-f", str(root / "serverless" / "Dockerfile"), str(root)], report
    )
    if lines is not None:
        errors = [line for line in lines if line.startswith("error:")]
        raise InvalidRequestError(
            "the image cannot be built",
            why="\n".join(errors[:1] or lines[-5:]),
            hint="see the output of the build above",
        )


def push(name: str, tag: str, *, user: str, password: str, report: Report) -> None:
    """
    Push *tag* to its registry.

    Raises:
        UnavailableError: The registry refused it.
    """
    host = tag.split("/")[0]
    plain = ["--tls-verify=false"] if _is_loopback(host) and name != "docker" else []
    login = subprocess.run(
        [name, "login", *plain, "--username", user, "--password-stdin", host],
        input=password,
        capture_output=True,
        text=True,
        check=False,
    )
    if login.returncode:
        raise UnavailableError(f"the registry {host} refused the login", why=login.stderr.strip())
    lines = failed_lines([name, "push", *plain, tag], report)
    if lines is not None:
        raise UnavailableError(
            f"{tag} was not pushed",
            why="\n".join(lines[-5:]),
            hint="do the credentials allow ecr:PutImage, ecr:InitiateLayerUpload, "
            "ecr:UploadLayerPart and ecr:CompleteLayerUpload?",
        )


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def failed_lines(
    command: Sequence[str],
    report: Report,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str] | None:
    """
    Run a command and report each line that it prints; returns the lines if it failed, else None.
    """
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=env,
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                report(lines[-1])
        except BaseException:
            # When we are interrupted, the command does not continue alone.
            process.terminate()
            raise
    return lines if process.returncode else None
