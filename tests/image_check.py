"""
The real image: built without a Docker engine, pushed by digest, started read-only with a memory
limit,
and called.

``python tests/image_check.py [--cold ROUNDS]``, as root on Debian, with ``apt-get install buildah
podman skopeo runc mmdebstrap docker-registry``. No package registry has AWS's base image, so a
Debian with Python replaces it, without the commands that Amazon Linux's smallest image lacks. Exit
0: all checks passed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PACKAGES = "buildah podman skopeo runc mmdebstrap docker-registry"
BASE, IMAGE = "localhost/pfl-base:4", "localhost/pfl:check"
_BASE = """
FROM scratch
ADD base.tar /
RUN ls -d /usr/share/python-wheels/pip-*.whl > /usr/lib/python3/dist-packages/pip.pth \\
 && cd /usr/bin && rm find xargs tar gzip which apt-get ../sbin/useradd ../sbin/groupadd
"""
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_SESSION_TOKEN": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
PASSWORD = "123456789012-auth-token"  # Of moto's ECR.


def main() -> None:
    """Build, push, start and call; with ``--cold`` measure cold starts inside."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the images here, for the next time")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the clean-up runs.
    if missing := [name for name in PACKAGES.split() if not shutil.which(name)]:
        sys.exit(
            f"not here: {', '.join(missing)}: apt-get install --no-install-recommends {PACKAGES}"
        )
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pfl-image-") as temporary:
        folder = Path(chosen.keep or temporary)
        folder.mkdir(exist_ok=True)
        _configure(folder)
        try:
            check(folder, chosen.cold)
        finally:
            _unmount(folder)
    print("1 passed, 0 failed")


def check(folder: Path, cold: int) -> None:
    """Run all checks."""
    import servers

    from pfl.handler.engine.prefect import server
    from pfl.serverless import image

    for each in image.PLATFORMS:
        _step(f"all dependencies are wheels for {each}", lambda each=each: _wheels(each))
    _step("the base image", lambda: _base(folder))
    pip = folder / "pip.conf"
    pip.write_text(f"[global]\ncert = {CERTIFICATES}\n")
    more = [
        "--build-arg",
        f"BASE_IMAGE={BASE}",
        "--network",
        "host",
        "--pull-never",
        "-v",
        f"{CERTIFICATES}:{CERTIFICATES}:ro",
        "-v",
        f"{pip}:/etc/pip.conf:ro",
    ]
    _step(
        "the image",
        lambda: image.build("buildah", ROOT, IMAGE, options=more, report=lambda line: None),
    )
    _step("a flow that raises fails the build, with file and line", lambda: _broken(folder, more))
    with servers.s3() as s3, _registry(folder) as registry:
        _step("pushed by digest, as pfl deploy does", lambda: _pushed(s3, registry))
        home = folder / "prefect" / ".pfl"
        prefect = server.ensure(home, idle_s=900)
        try:
            environ = _environ(s3, f"{prefect.url}")
            _step("called in a read-only container", lambda: _called(environ))
            print(_inside(environ, "sh", "-c", "du -sm /opt/python /var/task; id"))
            size = int(_run("podman", "image", "inspect", "--format", "{{.Size}}", IMAGE))
            print(f"the whole image: {size // 1_000_000} MB")
            if cold:
                mount = ["-v", f"{ROOT / 'tests' / 'cold_start.py'}:/bench/cold_start.py:ro"]
                mount += [
                    "-v",
                    f"{sysconfig.get_path('purelib')}:/bench/boto3:ro",
                ]  # The image does not contain it.
                print(_inside(environ, "python3", "/bench/cold_start.py", str(cold), options=mount))
        finally:
            server.stop(home)


def _step(what: str, do) -> None:
    started = time.monotonic()
    do()
    print(f"{what}: {time.monotonic() - started:.1f} s", flush=True)


def _configure(folder: Path) -> None:
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
    )
    # crun does not support mixed cgroups; a sandbox may not raise the host's limits.
    (folder / "containers.conf").write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=2048:2048"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\n'
    )
    os.environ |= {
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "TMPDIR": str(folder / "tmp"),
        "REGISTRY_AUTH_FILE": str(folder / "auth.json"),
    }
    (folder / "tmp").mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("PFL_", "PREFECT_"))]:
        del os.environ[name]


def _unmount(folder: Path) -> None:
    """Unmount what buildah and podman have mounted in *folder*, so that it can be removed."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in sorted((path for path in mounted if path.startswith(f"{folder}/")), reverse=True):
        _run("umount", "--lazy", path)


def _wheels(arch: str) -> None:
    """Resolve the dependencies as the Dockerfile does: without a wheel, one needs a compiler."""
    version = re.search(
        r"^ARG BASE_IMAGE=\S+python:([\d.]+)$",
        (ROOT / "serverless" / "Dockerfile").read_text(),
        re.M,
    )[1]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    machine = {"arm64": "aarch64"}.get(arch, arch)
    # Amazon Linux 2023 has glibc 2.34.
    platforms = [
        f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 24, 26, 27, 28, 31, 34)
    ] + [f"--platform=manylinux2014_{machine}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--dry-run",
        "--ignore-installed",
        "--target",
        os.environ["TMPDIR"],
        "--only-binary=:all:",
    ]
    _run(
        *command,
        *platforms,
        "--python-version",
        version,
        "-c",
        str(ROOT / "constraints.txt"),
        *groups["lambda"],
        *groups["steps"],
    )


def _base(folder: Path) -> None:
    if (
        subprocess.run(
            ["buildah", "inspect", "--type", "image", BASE], capture_output=True
        ).returncode
        == 0
    ):
        return
    context = folder / "base"
    context.mkdir(exist_ok=True)
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--include=python3,python3-pip-whl,ca-certificates",
        "--mode=root",
        "bookworm",
    ]
    _run(*command, str(context / "base.tar"))
    (context / "Dockerfile").write_text(_BASE)
    _run("buildah", "bud", "--squash", "-t", BASE, str(context))
    (context / "base.tar").unlink()


def _broken(folder: Path, more: list[str]) -> None:
    from pfl.handler.core.errors import InvalidRequestError
    from pfl.serverless import image

    project = folder / "broken"
    shutil.rmtree(project, ignore_errors=True)
    for name in ("flows", "handler", "serverless"):
        shutil.copytree(
            ROOT / name,
            project / name,
            ignore=shutil.ignore_patterns("__pycache__", "node_modules"),
        )
    for name in ("__init__.py", "pyproject.toml", "constraints.txt", ".dockerignore"):
        shutil.copy(ROOT / name, project / name)
    (project / "flows" / "b.py").write_text("from pfl import step\n1 / 0\n")
    try:
        image.build(
            "buildah", project, "localhost/pfl:broken", options=more, report=lambda line: None
        )
    except InvalidRequestError as exc:
        assert "ZeroDivisionError: division by zero at flows/b.py:2" in exc.why, exc.why
    else:
        raise AssertionError("a flow that raises was built into an image")


def _pushed(s3: str, registry: str) -> None:
    """
    Push the image of this code to a repository with a password, and find it there by its digest.

    A registry and moto's ECR replace AWS's: what is pushed to the registry is registered in moto.
    """
    import boto3

    from pfl.handler.core.errors import UnavailableError
    from pfl.handler.core.settings import Settings
    from pfl.serverless import deploy, image

    os.environ |= KEYS | {"AWS_ENDPOINT_URL": s3}
    at = deploy.Deployment(Settings(project=str(ROOT), engine="direct"), report=lambda line: None)
    at.find_region()
    at.find_account()
    ecr, name = boto3.client("ecr"), f"{registry}/pfl"
    assert at._repository().endswith(".amazonaws.com/pfl")
    at._repository = lambda: name
    build, push, told = image.build, image.push, []

    def push_and_tell(tool: str, tag: str, **more) -> None:
        push(tool, tag, **more)
        said = _run(
            "skopeo",
            "inspect",
            "--raw",
            "--tls-verify=false",
            "--creds",
            f"{more['user']}:{more['password']}",
            f"docker://{tag}",
        )
        told.append(f"sha256:{hashlib.sha256(said.encode()).hexdigest()}")
        ecr.put_image(
            repositoryName="pfl",
            imageTag=tag.rpartition(":")[2],
            imageManifest=said,
            imageDigest=told[0],
        )

    image.tool, image.push = lambda: "buildah", push_and_tell
    image.build = lambda tool, root, tag, **more: _run(
        "buildah", "tag", IMAGE, tag
    )  # It is built already.
    try:
        uri = at.find_image(build=True)
        assert uri == f"{name}@{told[0]}", (uri, told)
        _run(
            "skopeo",
            "inspect",
            "--raw",
            "--tls-verify=false",
            "--creds",
            ":".join(at._login()),
            f"docker://{uri}",
        )
        assert at.find_image(build=True) == uri and len(told) == 1  # Nothing is pushed twice.
        push("buildah", f"{name}:other", user="AWS", password="wrong", report=lambda line: None)
    except UnavailableError as exc:
        assert "refused the login" in str(exc), exc
    else:
        raise AssertionError("the registry took a wrong password")
    finally:
        image.build, image.push = build, push


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    from lambda_service import _free_ports

    (port,) = _free_ports(1)
    config, users = folder / "registry.yml", folder / "users"
    secret = _run("perl", "-e", 'print crypt($ARGV[0], q($2b$05$) . "a" x 22)', PASSWORD)
    users.write_text(f"AWS:{secret}\n")
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        f"auth: {{htpasswd: {{realm: pfl, path: {users}}}}}\n"
    )
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")
    }  # The registry reads them as its own settings.
    with subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        from lambda_service import _wait_for_port

        try:
            _wait_for_port(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _environ(s3: str, prefect: str) -> dict[str, str]:
    import boto3

    boto3.client("s3").create_bucket(Bucket="image")
    return KEYS | {
        "AWS_ENDPOINT_URL": s3,
        "PFL_STORE": "s3://image/pfl",
        "PREFECT_API_URL": prefect,
        "AWS_LAMBDA_FUNCTION_NAME": "check",
        "DO_NOT_TRACK": "1",
    }


def _options(environ: dict[str, str]) -> list[str]:
    limits = [
        "--network",
        "host",
        "-m",
        "512m",
        "--cpu-shares",
        "262144",
        "--read-only",
        "--read-only-tmpfs=false",
        "--tmpfs",
        "/tmp:rw,size=512m",
    ]
    return [
        *limits,
        *(part for name, value in environ.items() for part in ("-e", f"{name}={value}")),
    ]


def _inside(environ: dict[str, str], *command: str, options: list[str] = []) -> str:  # noqa: B006
    return _run(
        "podman",
        "run",
        "--rm",
        *_options(environ),
        *options,
        "--entrypoint",
        command[0],
        IMAGE,
        *command[1:],
    )


def _called(environ: dict[str, str]) -> None:
    import rie
    from lambda_service import _free_ports, _wait_for_port

    ports = _free_ports(2)
    emulator = [
        "--runtime-interface-emulator-address",
        f"127.0.0.1:{ports[0]}",
        "--runtime-api-address",
        f"127.0.0.1:{ports[1]}",
    ]
    command = [
        "podman",
        "run",
        "--rm",
        *_options(environ),
        "-v",
        f"{rie.binary()}:/rie:ro",
        "--entrypoint",
        "/rie",
        IMAGE,
        *emulator,
    ]
    command += ["python3", "-m", "awslambdaric", "pfl.handler.entry.lambda_handler"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            _wait_for_port(ports[0], process)
            replies = [
                _post(ports[0], event)
                for event in (
                    {"action": "check"},
                    {"id": "image"},
                    {"id": "image"},
                    {"id": ""},
                    {"action": "reap"},
                )
            ]
        finally:
            process.terminate()
        log = process.communicate(timeout=30)[0]
    checked, miss, hit, wrong, reaped = replies
    assert checked["status"] == reaped["status"] == "completed", (checked, reaped)
    assert [row["status"] for row in miss["steps"]] == ["computed"] * 3, miss
    assert miss["engine"] == "prefect" and miss["url"] and not miss["warnings"], miss
    assert [row["status"] for row in hit["steps"]] == ["hit"] * 3 and hit["store"] == {"get": 1}, (
        hit
    )
    assert wrong["status"] == "invalid", wrong
    assert "Read-only file system" not in log, log
    assert re.search(r"External agent pfl .* registered", log), log


def _post(port: int, event: dict) -> dict:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
    reply = json.loads(connection.getresponse().read())
    connection.close()
    assert isinstance(reply, dict) and "status" in reply, reply
    return reply


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"{' '.join(command[:4])}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    )
    return done.stdout


if __name__ == "__main__":
    main()
