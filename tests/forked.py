"""
Processes that start without importing Prefect, which takes seconds: they are forked from one that
has done it.

`Popen` and `run` work as in `subprocess`, for commands ``[sys.executable, "-c", code, …]``. Each
process is real: it can be killed or interrupted, and has its own pipes, directory, environment and
exit code. Tests of what is imported, or of what Python reads from its environment when it starts,
use `subprocess` itself.

    test ─ code, directory, environment, streams ──► nursery ── fork ──► watcher ── fork ──► process
      ▲                                                                     │ waits for it
      └────────────────── its pid, and then its exit status ────────────────┘
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Modules that are programs, or belong into processes of others.
_PROGRAMS = ("__main__", "bake", "extension", "server_process", "worker")
_one_at_a_time = threading.Lock()


class Popen(subprocess.Popen):
    """A `subprocess.Popen` whose process is forked; other options of its start are ignored."""

    def _execute_child(
        self,
        args,
        executable,
        preexec_fn,
        close_fds,
        pass_fds,
        cwd,
        env,
        startupinfo,
        creationflags,
        shell,
        p2cread,
        p2cwrite,
        c2pread,
        c2pwrite,
        errread,
        errwrite,
        *_,
    ) -> None:
        python, flag, code, *arguments = args
        assert (python, flag) == (sys.executable, "-c")
        assert not (shell or pass_fds or preexec_fn)
        environ = {**(os.environ if env is None else env)}
        differing = {
            name for name, _ in environ.items() ^ os.environ.items() if name.startswith("PYTHON")
        }
        assert differing <= {"PYTHONWARNINGS"}, "the nursery has read these when it started"
        self._status, status = os.pipe()
        ends = [p2cread, c2pwrite, errwrite]
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        with _one_at_a_time:
            request = json.dumps([code, arguments, os.fspath(cwd or os.getcwd()), environ])
            socket.send_fds(_nursery(), [request.encode()], [*streams, status])
        os.close(status)
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        self.pid = self._read_number()
        self._child_created = True

    def _read_number(self) -> int:
        number = os.read(self._status, 4)
        assert len(number) == 4, "the nursery is gone"
        return int.from_bytes(number, "big")

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags == os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        status = self._read_number()
        os.close(self._status)
        return self.pid, status

    def _internal_poll(self, _deadstate: object = None) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(command: list[str], *, input: str | None = None, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` with both streams captured, as text."""
    options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Popen(command, **options) as process:
        out, err = process.communicate(input)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@cache
def _nursery() -> socket.socket:
    """A socket to the nursery of this process, which ends when the socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _import_all() -> None:
    from pfl.handler.core.settings import Settings
    from pfl.handler.engine.prefect import environment

    environment.prepare(Settings(prefect_api_url="http://127.0.0.1:9/api"))
    import pfl.cli
    import pfl.serverless

    for package in (pfl.cli, pfl.handler, pfl.serverless):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2] not in _PROGRAMS:
                importlib.import_module(module.name)
    for name in (
        "boto3",
        "prefect.flow_engine",
        "prefect.main",
        "prefect.task_engine",
        "rich.table",
    ):
        importlib.import_module(name)


def _serve(orders: socket.socket) -> str:
    """Fork for each order; returns in the child, with the code to run."""
    _import_all()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 4)
        if not order:
            os._exit(0)
        if os.fork() == 0:
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if child := os.fork():
                _watch(child, descriptors)
            return _become(json.loads(order), descriptors)
        for each in descriptors:
            os.close(each)


def _watch(child: int, descriptors: list[int]) -> None:
    *streams, status = descriptors
    for each in streams:
        os.close(each)
    os.write(status, child.to_bytes(4, "big"))
    os.write(status, os.waitpid(child, 0)[1].to_bytes(4, "big"))
    os._exit(0)


def _become(order: list, descriptors: list[int]) -> str:
    from pfl.handler.core.settings import of_process

    code, arguments, folder, environ = order
    for number, each in enumerate(descriptors):
        if number < 3:
            os.dup2(each, number)
        os.close(each)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    of_process.cache_clear()
    sys.argv = ["-c", *arguments]
    sys.path[0] = ""
    if kinds := environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(kinds)
    return code


def _end(code: str) -> None:
    """Run *code*, and end as Python would, but without unloading what was imported."""
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        status: object = 0
    except SystemExit as exc:
        status = exc.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    except BaseException as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _end(_serve(socket.socket(fileno=int(sys.argv[1]))))
