"""A process that has imported what workers need, and forks each worker from itself.

torch and Lightning take 4 to 10 CPU-seconds to import, and longer from the file system of a cluster. Without this,
every cell of a sweep would pay for that. A worker that is forked begins as a fresh one does, only later: the server has
computed nothing, has no second thread, and has not asked for a GPU, so there is nothing that a fork could break.

The server leads a session of its own, so that Ctrl-C and a signal to the sweep's process group do not reach it. It ends
when the process that started it does.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from ratplus.sweeps.launch.child import Process

# What may differ between the environments of a server and of a worker, since no import reads it. torch and Lightning
# set the second and third where they are used; pytest has the last.
_READ_LATE = (
    "CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR", "PYTEST_CURRENT_TEST",
)  # fmt: skip
# What a worker runs. They bring torch, Lightning and all of ours that a cell uses.
_PRELOADED = (
    "ratplus.checkpoint.folder", "ratplus.data.batches", "ratplus.data.sft", "ratplus.evaluation.suites",
    "ratplus.kernels.attention.eager", "ratplus.model", "ratplus.records.samples", "ratplus.stages.cell",
    "ratplus.sweeps.launch.worker", "ratplus.sweeps.mirror.live", "ratplus.training.run",
)  # fmt: skip


class ForkedProcess:
    """A process that a server forked; a child.Process.

    Attributes:
        pid: of the process.
        returncode: exit code, or minus the signal that ended it; None until `poll` or `wait` has seen its end.
    """

    def __init__(self, status: int):
        """`status` is the reading end of a pipe: the server writes the pid, and later the exit code, a line each.

        Raises:
            ConnectionError: the server has gone.
        """
        self._status = os.fdopen(status, "rb", buffering=0)
        self.returncode: int | None = None
        line = self._status.readline()
        if not line:
            self._status.close()
            raise ConnectionError("the server of workers has ended")
        self.pid = int(line)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it has not come within `timeout` seconds.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0.0)
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            line = self._status.readline()
            # Without a line the server has gone, and nobody knows the code. Its records then say how a worker ended.
            self.returncode = int(line) if line else 0
            self._status.close()
        return self.returncode


class ForkServer:
    """A server, as the process that started it sees it.

    Args:
        environment: variables of the server's process.
        process: the server.
        control: what it takes orders from; it says there that it has imported everything.
    """

    def __init__(self, environment: dict[str, str], process: Process, control: socket.socket):
        self.environment = environment
        self._process, self._control = process, control
        self._ready = False

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether everything is imported, after waiting at most so long; never True of a server that has ended."""
        if self._process.poll() is not None:
            return False
        if not self._ready and select.select([self._control], [], [], seconds)[0]:
            self._ready = self._control.recv(1) == b"r"
        return self._ready

    def suits(self, environment: dict[str, str]) -> bool:
        """Whether what a process with this environment imports would be what the server has imported."""
        return _read_on_import(environment) == _read_on_import(self.environment)

    def fork(
        self, function: str, words: list[str], *, environment: dict[str, str], cwd: str, stdout: int, stderr: int
    ) -> ForkedProcess:
        """Fork a process, the first of a session of its own, that calls a function and exits with what that returns.

        Args:
            function: `module:name`, called without arguments.
            words: `sys.argv` of the process.
            environment: all variables of the process.
            cwd: its working folder.
            stdout: file descriptor that the process prints to; it reads from nothing.
            stderr: likewise.

        Raises:
            OSError: the server has gone (ConnectionError).
        """
        status, told = os.pipe()
        try:
            # In memory, since the environment may hold keys and tokens.
            with open(os.memfd_create("request"), "wb") as request:
                plain = {"function": function, "words": words, "environment": environment, "cwd": cwd}
                request.write(json.dumps(plain).encode())
                request.flush()
                socket.send_fds(self._control, [b"f"], [request.fileno(), stdout, stderr, told])
        except OSError:
            os.close(status)
            raise
        finally:
            os.close(told)
        return ForkedProcess(status)

    def close(self) -> None:
        """End the server; processes that it forked go on until they notice that their parent has gone."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def _read_on_import(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k not in _READ_LATE}


_server: ForkServer | None = None


def start_server(environment: dict[str, str], more: Sequence[str] = ()) -> ForkServer:
    """Start the server of this process, for workers with this environment; it imports in the background.

    One that this process had before is ended.

    Args:
        more: names of modules to import beside those that workers need.
    """
    return use_server(new_server(environment, more))


def new_server(environment: dict[str, str], more: Sequence[str] = ()) -> ForkServer:
    """`start_server` of a server that is not that of this process: whoever starts it closes it."""
    control, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ratplus.sweeps.launch.fork_server", str(theirs.fileno()), *more],
            pass_fds=[theirs.fileno()], env=environment, start_new_session=True, cwd="/",
            # Where an import fails, workers are started one by one, and say so themselves.
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return ForkServer(environment, process, control)


def use_server(server: ForkServer) -> ForkServer:
    """Make this the server of this process; one that it had before is ended."""
    global _server
    close_server()
    _server = server
    return server


def server_for(environment: dict[str, str]) -> ForkServer | None:
    """The server of this process, if there is one for workers with such an environment."""
    return _server if _server is not None and _server.suits(environment) else None


@atexit.register
def close_server() -> None:
    global _server
    if _server is not None:
        _server.close()
        _server = None


# ---- the server ----------------------------------------------------------------------------------------------------


def main(control: socket.socket, more: list[str]) -> Callable[[], int | None] | None:
    """Import, then fork whenever asked. Returns in the server at its end, and in each forked process what to call."""
    preload(more)
    return serve(control)


def preload(more: Sequence[str] = ()) -> None:
    """Import what workers need, and `more`, so that a process forked afterwards finds all of it in memory."""
    for name in (*_PRELOADED, *more):
        import_module(name)
    from ratplus.records.record import code_version

    code_version()  # of the files as they were imported; forked processes keep the answer
    gc.collect()
    gc.freeze()  # so that collections in forked processes do not copy pages that all of them share
    assert threading.active_count() == 1, "an import started a thread, which a fork would lose"


def serve(control: socket.socket) -> Callable[[], int | None] | None:
    """`main` without the imports."""
    control.send(b"r")
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    pipes: dict[int, int] = {}  # of each forked process, where its exit code is written
    while True:
        asked = control in select.select([control, woken], [], [])[0]
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        _reap(pipes)
        if not asked:
            continue
        message, given, _, _ = socket.recv_fds(control, 1, 4)
        if not message:  # whoever started this process has gone
            return None
        request, stdout, stderr, told = given
        with open(request, "rb") as file:
            file.seek(0)
            wanted = json.load(file)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            for descriptor in (woken, wake, told, *pipes.values()):
                os.close(descriptor)
            return lambda: _begin(wanted, stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        pipes[pid] = told
        _tell(told, pid)


def _reap(pipes: dict[int, int]) -> None:
    while pipes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        told = pipes.pop(pid)
        _tell(told, os.waitstatus_to_exitcode(status))
        os.close(told)


def _tell(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, f"{number}\n".encode())


def _begin(wanted: dict, stdout: int, stderr: int) -> int | None:
    """Become the process that was asked for."""
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = wanted["words"]
    searched = wanted["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in searched if folder and folder not in sys.path]
    module, _, name = wanted["function"].partition(":")
    return getattr(import_module(module), name)()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        forked = main(channel, sys.argv[2:])
    if forked is not None:
        sys.exit(forked())
