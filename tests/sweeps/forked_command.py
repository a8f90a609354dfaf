"""What runs in a process that the tests' fork server has forked: a command, whose workers are forked as well.

So neither imports torch. The server of its workers is a fork of this process, which has done nothing yet; one that is
started as usual would import everything again.
"""

import itertools
import os
import socket
import sys
import time


class ServerProcess:
    """A forked server, as ForkServer asks for it."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, 9)

    terminate = kill


def jumping_clock() -> None:
    """Let the wall clock jump back and forth, as NTP and suspended laptops do."""
    jumps, real = itertools.cycle((0.0, 86400.0, -86400.0, 3e8)), time.time
    time.time = lambda: real() + next(jumps)
    time.time_ns = lambda: int(time.time() * 1e9)


def main():
    """The command of sys.argv, with a small report at its end."""
    from plain_report import plain_report

    with plain_report(sys.argv[1:]):
        return whole()


def whole():
    """The command of sys.argv."""
    from ratplus.sweeps.cli import main as command
    from ratplus.sweeps.define.compose import compose_one
    from ratplus.sweeps.launch import fork_server
    from ratplus.sweeps.launch.child import worker_environment
    from ratplus.sweeps.launch.work import threads_per_cell

    if "JUMPING_CLOCK" in os.environ:
        jumping_clock()
    environment = worker_environment(threads_per_cell(compose_one([]).config.launcher))
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        os.setsid()
        for standard in (1, 2):  # whoever reads what the command prints must not wait for this process
            os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
        work = fork_server.serve(theirs)
        sys.exit(work() if work is not None else 0)
    theirs.close()
    server = fork_server.use_server(fork_server.ForkServer(environment, ServerProcess(pid), mine))
    # Variables that the command sets from here on reach its workers when they are forked; no import reads one.
    server.suits = lambda _: True
    return command()
