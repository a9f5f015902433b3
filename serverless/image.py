"""Building the image and pushing it, with whichever of docker, podman and buildah works here."""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pfl.handler.core.errors import InvalidRequestError, UnavailableError

_TOOLS = {"docker": ["info"], "podman": ["info"], "buildah": ["info"]}
_PARTS = (
    "__init__.py",
    "flows",
    "handler",
    "pyproject.toml",
    "constraints.txt",
    "serverless/Dockerfile",
    "serverless/extension.py",
    ".dockerignore",
)
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}

Tell = Callable[[str], None]


def tool() -> str | None:
    """The first of docker, podman and buildah that is installed and answers; a docker without its engine does not."""
    for name, ask in _TOOLS.items():
        if (
            shutil.which(name)
            and subprocess.run([name, *ask], capture_output=True, check=False).returncode == 0
        ):
            return name
    return None


def digest(root: Path, *also: str) -> str:
    """64 hex digits for all that goes into an image: the same files give the same image's tag."""
    hashed = hashlib.sha256("\0".join(also).encode())
    for part in _PARTS:
        top = root / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                hashed.update(
                    f"\0{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}".encode()
                )
    return hashed.hexdigest()


def build(
    name: str,
    root: Path,
    tag: str,
    *,
    arch: str = "x86_64",
    base: str = "",
    more: Sequence[str] = (),
    tell: Tell,
) -> None:
    """
    Build the image of the project at *root* as *tag*.

    Args:
        name: What builds it, see :func:`tool`.
        root: The project.
        tag: What to call it.
        arch: ``x86_64`` or ``arm64``.
        base: The image to build on, if not that of the Dockerfile.
        more: More options of the tool.
        tell: Told each line that the tool prints.

    Raises:
        InvalidRequestError: It cannot be built; the last words of the build say why.
    """
    command = [
        name,
        *(["bud", "--layers", "--force-rm"] if name == "buildah" else ["build"]),
        "--platform",
        PLATFORMS[arch],
        *more,
        "-t",
        tag,
    ]
    command += ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    lines = run([*command, "-f", str(root / "serverless" / "Dockerfile"), str(root)], tell)
    if lines is not None:
        said = next((line for line in lines if line.startswith("error:")), "\n".join(lines[-5:]))
        raise InvalidRequestError(
            "the image cannot be built", why=said, hint="the lines above are the build's own"
        )


def push(
    name: str, tag: str, *, user: str = "", password: str = "", more: Sequence[str] = (), tell: Tell
) -> None:
    """
    Push *tag* to the registry that it names.

    Raises:
        UnavailableError: The registry did not take it.
    """
    host = tag.split("/")[0]
    plain = ["--tls-verify=false"] if _is_loopback(host) and name != "docker" else []
    if password:
        login = subprocess.run(
            [name, "login", *plain, "--username", user, "--password-stdin", host],
            input=password,
            capture_output=True,
            text=True,
            check=False,
        )
        if login.returncode:
            raise UnavailableError(
                f"the registry {host} refused the login", why=login.stderr.strip()
            )
    if (lines := run([name, "push", *plain, *more, tag], tell)) is not None:
        hint = "do the credentials allow ecr:PutImage, ecr:InitiateLayerUpload, ecr:UploadLayerPart and ecr:CompleteLayerUpload?"
        raise UnavailableError(f"{tag} was not pushed", why="\n".join(lines[-5:]), hint=hint)


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] or host
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def run(command: Sequence[str], tell: Tell, **more: object) -> list[str] | None:
    """Run a command, with *more* for :class:`subprocess.Popen`, and tell its lines; those, where it failed."""
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **more,
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                tell(lines[-1])
        except BaseException:
            process.terminate()  # Interrupted, it shall not go on alone.
            raise
    return lines if process.returncode else None
