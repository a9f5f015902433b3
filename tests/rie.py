"""AWS's Runtime Interface Emulator, from the pinned wheel of aws-sam-cli, kept in ``.pfl``."""

from __future__ import annotations

import fcntl
import hashlib
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

WHEEL = "aws-sam-cli==1.170.0"
SHA256 = {
    "x86_64": "6b1e686e62ab2baf5759c412c4864276ef2a88b094fca53ec070637ccba9b9a5",
    "arm64": "ec2e5d09633d853834c008b1ef264bf834b258a94d551d2b2074966494b39a21",
}


def binary() -> Path:
    """The emulator, downloaded once per checkout; its digest is checked each time."""
    if sys.platform != "linux":
        pytest.skip("AWS's Runtime Interface Emulator is a Linux program")
    machine = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    home = ROOT / ".pfl" / "rie"
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"aws-lambda-rie-{machine}"
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Parallel tests download it once.
        if not path.is_file() or _digest(path) != SHA256[machine]:
            _fetch(path, machine)
    return path


def _fetch(path: Path, machine: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"pip could not fetch {WHEEL}: {done.stderr}"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            data = wheel.read(f"samcli/local/rapid/aws-lambda-rie-{machine}")
    assert hashlib.sha256(data).hexdigest() == SHA256[machine], (
        f"{WHEEL} holds another emulator than the one pinned here"
    )
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.chmod(0o755)
    part.replace(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
