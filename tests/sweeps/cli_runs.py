"""Running the console script as users do, and looking at what it left."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from unittest import mock

from plain_report import plain_report

from ratplus.sweeps.launch.fork_server import ForkServer

RATPLUS = str(Path(sys.executable).with_name("ratplus"))
# One small text file instead of the standard library, and next to no work.
TINY = [
    "data=text", "data.path=text.txt", "model=ratplus_nano", "logger=none", "train.context=64",
    "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8",
    "train.pretrain.steps=4", "train.adapt.steps=2", "train.pretrain.batch=4", "train.adapt.batch=4",
    "eval.cloze.items=8",  # the text repeats itself, so that other continuations are hard to find
    "run.threads=1",  # the other core belongs to somebody else
]  # fmt: skip


def _warm_up(words) -> None:
    """Have the workers of a command with several cells forked."""
    if words[0] == "sweep" or "-m" in words:
        warm_server()


def run_here(*words) -> int:
    """Exit code of a command run in this process, which saves the seconds that importing torch takes.

    Variables that it sets end with it, as they would with its process.
    """
    from ratplus.sweeps import cli

    _warm_up(words)
    try:
        with plain_report(words), mock.patch.dict(os.environ):
            cli.main(list(words))
    except SystemExit as ended:
        return ended.code or 0
    raise AssertionError("cli.main always exits")


def run_verb(verb: str, *words: str) -> int:
    """What a verb itself returns of these words, or raises: without the command line's way out (`leave`)."""
    from ratplus.sweeps import cli

    return cli.verb_module(verb).run(cli.parser_of(verb).parse_intermixed_args(list(words)))


def ratplus_here(place, *words) -> subprocess.CompletedProcess:
    """`ratplus`, in this process: for what a command says and leaves, where its being a process is not the point.

    The report of a command that runs cells is a small one (plain_report.py); `ratplus report` writes a whole one.
    Variables that the command sets end with it, as they would with its process.
    """
    from ratplus.sweeps import cli

    _warm_up(words)
    said, complained = io.StringIO(), io.StringIO()
    streams = redirect_stdout(said), redirect_stderr(complained)
    with chdir(place), streams[0], streams[1], plain_report(words), mock.patch.dict(os.environ):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
        else:
            raise AssertionError("cli.main always exits")
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


@cache
def warm_server() -> ForkServer:
    """The server of this test process: forks of it need not import torch, which takes up to 10 CPU-seconds.

    It is started once and stays. Local sweeps that tests run in this process use it for their workers.
    """
    from ratplus.sweeps.launch.fork_server import use_server

    server = use_server(server_of_commands())
    server.suits = lambda environment: _read_by_imports(environment) == _read_by_imports(server.environment)
    return server


def server_of_commands(**variables: str) -> ForkServer:
    """A server with some more variables, which `Started` can fork commands from; whoever asks for it closes it."""
    from ratplus.sweeps.define.compose import compose_one
    from ratplus.sweeps.launch.child import worker_environment
    from ratplus.sweeps.launch.fork_server import new_server
    from ratplus.sweeps.launch.work import threads_per_cell

    ratplus_here(".", "--version")  # sets the variables that every command sets
    # What commands import beside what workers do.
    more = ("hydra", "pandas", "ratplus.analysis.report", "ratplus.sweeps.cli")
    server = new_server(worker_environment(threads_per_cell(compose_one([]).config.launcher)) | variables, more)
    assert server.ready(300)
    return server


def _read_by_imports(environment: dict[str, str]) -> dict[str, str]:
    """The variables for which a test needs a server of its own.

    `ForkServer.suits` cannot know which variables imports read, and has nearly all decide. Here it is known, and tests
    differ in many: tokens, commands on PATH, threads (which every job sets for itself). All of them reach the fork.
    """
    return {k: v for k, v in environment.items() if k.startswith(("LD_", "PYTHONHASHSEED", "TRITON_INTERPRET"))}


class Started:
    """A command in a process of its own, forked from `warm_server` in place of the console script.

    Args:
        run: the function that the process calls; "forked_command:whole" writes a whole report, not a small one.
        server: of `server_of_commands`, in place of `warm_server`.
    """

    def __init__(
        self, place, *words, environment: dict[str, str] | None = None, run="forked_command:main",
        server: ForkServer | None = None,
    ):  # fmt: skip
        server = server or warm_server()
        variables = dict(os.environ if environment is None else environment)
        folders = (variables.get("PYTHONPATH"), str(Path(__file__).parent))
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        with ExitStack() as files:
            self._files = [files.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            self._open = files.pop_all()
        out, err = (file.fileno() for file in self._files)
        self._process = server.fork(
            run, ["ratplus", *map(str, words)], environment=variables, cwd=str(place), stdout=out, stderr=err
        )  # fmt: skip
        self.pid = self._process.pid
        self.poll, self.wait, self.kill = self._process.poll, self._process.wait, self._process.kill
        self.terminate, self.send_signal = self._process.terminate, self._process.send_signal

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def stderr_so_far(self) -> str:
        return os.pread(self._files[1].fileno(), 10_000_000, 0).decode(errors="replace")

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; what it printed to stdout and stderr."""
        with self._open:
            try:
                self.wait(timeout)
            finally:
                self.kill()
            out, err = (os.pread(file.fileno(), 10_000_000, 0).decode() for file in self._files)
            return out, err


def ratplus(
    place, *words, timeout=240, environment=None, run="forked_command:main", server=None
) -> subprocess.CompletedProcess:
    """A command to its end, in a process of its own. What needs the console script itself starts RATPLUS."""
    process = Started(place, *words, environment=environment, run=run, server=server)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def records(sweep: Path) -> dict:
    found = {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/*/record.json")}
    return {k: {"status": r["status"], "metrics": r["metrics"], "config": r["config"]} for k, r in found.items()}


def weights(sweep: Path) -> dict:
    return {p.parent.name: p.read_bytes() for p in sweep.glob("*/*/model.safetensors")}


def leftovers(sweep: Path) -> list:
    """Files that a finished sweep has no use for."""
    wanted = ("record.json", "curve.csv", "samples.jsonl", "model.safetensors", "config.json", "sweep.json")
    inside = ("logs", "report", "wandb")
    return [
        p for p in sweep.rglob("*")
        if p.is_file() and p.name not in wanted and p.relative_to(sweep).parts[0] not in inside
    ]  # fmt: skip


def stamps(sweep: Path) -> dict:
    """When each file of a stage was last written."""
    stages = ("pretrain", "adapt", "evaluate")
    return {p: p.stat().st_mtime_ns for stage in stages for p in sweep.glob(f"{stage}/*/*")}


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    try:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def working_in(place) -> list[int]:
    """Processes whose working folder it is, as commands that run there and their workers have it."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended, or is not ours
            if os.path.realpath(os.readlink(link)) == os.path.realpath(place):
                found.append(int(link.parent.name))
    return found


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
