"""The child process that runs a job, wherever that is: starting it, ending it, and what its end means.

A crash, an out-of-memory kill or leaked GPU memory stays in its own process. Killing any process at any moment costs
time only, since a worker goes through idempotent stages.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ratplus.records.atomic import write_atomically
from ratplus.records.process import identity
from ratplus.records.reading import open_own, open_plain
from ratplus.records.record import RECORD_FILE, provenance, write_record
from ratplus.records.status import stage_state
from ratplus.stages.failures import describe_failure, memory_advice
from ratplus.sweeps.define.manifest import planned_stages
from ratplus.sweeps.define.typed import typed
from ratplus.sweeps.launch.cell import EXIT_FAILED
from ratplus.sweeps.launch.progress import LOGS, Watch, job_file
from ratplus.sweeps.launch.work import Job

# How long a worker has to save its state when it is asked to stop.
SAVE_SECONDS = 30.0
# Exit codes of a worker that was asked to stop, which is no failure.
STOPPED = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
# Variables that a worker does not inherit. It is no rank of the batch job that it runs in, and Lightning would take it
# for one. Variables that only name the job may stay.
_BATCH_VARIABLES = re.compile(
    r"(SUBMITIT|RAY|PMI|PMIX)_|SLURM_(?!JOB_ID$|ARRAY_JOB_ID$|ARRAY_TASK_ID$|JOB_PARTITION$|RESTART_COUNT$)"
)


class Process(Protocol):
    """What is needed of a worker's process: a part of subprocess.Popen."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def start_process(job_file: str, environment: dict[str, str], cwd: str, output: int) -> Process:
    """Start a worker as a process of its own.

    Args:
        environment: all variables of the process.
        output: file descriptor that it prints to.
    """
    return subprocess.Popen(
        # -P: nothing is imported from the working folder, which `python -m` would search first.
        [sys.executable, "-P", "-m", "ratplus.sweeps.launch.worker", job_file],
        stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, env=environment,
        # Ctrl-C reaches the parent alone, which passes it on once.
        start_new_session=True,
    )  # fmt: skip


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a worker with so many CPU threads: this process's own, without what makes it a rank of a job."""
    count = str(threads)
    # The flag -P does not reach what the worker starts, such as the other ranks of its training; the variable does.
    own = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONSAFEPATH": "1"}
    return {k: v for k, v in os.environ.items() if not _BATCH_VARIABLES.match(k)} | own


class Child:
    """A worker process of one job, and the files by which others know it.

    Args:
        job: what the worker runs; kept in `<folder>/logs/<id>.job.json` while it does.
        environment: variables of the worker, beside this process's own.
        start: starts its process, as `start_process` does.
    """

    def __init__(
        self,
        job: Job,
        environment: dict[str, str] | None = None,
        start: Callable[[str, dict[str, str], str, int], Process] = start_process,
    ):
        self.job = job
        self._records = Records(job)
        base = Path(job["folder"]) / LOGS / job["id"]
        self._file = job_file(Path(job["folder"]), job["id"])
        self.progress, self.log = (base.with_suffix(s) for s in (".progress.json", ".log"))
        self._unfinished = False
        base.parent.mkdir(parents=True, exist_ok=True)
        self.progress.unlink(missing_ok=True)
        everything = worker_environment(job["threads"]) | (environment or {})
        with open_own(self.log, append=True) as output:
            # The record of a failure quotes what is printed from here on.
            self._log_start = output.tell()
            told: Watch = {"processes": [identity()], "log_start": self._log_start}
            write_atomically(self._file, json.dumps({**job, "progress": str(self.progress), **told}))
            self.process = start(str(self._file), everything, job["cwd"], output.fileno())

    def stop(self, seconds: float = SAVE_SECONDS) -> None:
        """Ask the worker to save and stop; end it, and what it started, if it doesn't in time.

        This works in a signal's handler too. Such a handler may interrupt Popen while that holds its lock, so nothing
        here calls Popen.wait.
        """
        with suppress(ProcessLookupError):
            if self.process.returncode is None:
                os.kill(self.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while not self._has_ended():
            if time.monotonic() > deadline:
                self._end_group()
            time.sleep(0.05)
        self.process.poll()
        self._clean()

    def _has_ended(self) -> bool:
        if self.process.returncode is not None:
            return True
        if not isinstance(self.process, subprocess.Popen):
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def finish(self) -> int:
        """Tidy up after the worker's end, and record a failure that left no record; returns the exit code.

        A worker that ends well without having done its stages has failed as well: EXIT_FAILED is returned for it.
        """
        code = self.process.returncode
        assert code is not None
        if code < 0:
            self._end_group()
        if code == 0 and not self._records.done():
            code = self.process.returncode = EXIT_FAILED
            self._unfinished = True
        if code not in (0, *STOPPED) and not self._records.changed():
            kind = signal.Signals(-code).name if code < 0 else "WorkerEnded"
            record_death(self.job, kind, self._how_it_died(code), self._last_lines())
        self._clean()
        return code

    def _how_it_died(self, code: int) -> str:
        if code < 0:
            return self.ending()
        said = f"; it printed last: {self.ending()}" if self._last_lines() else ""
        ended = "exit code 0, before its work was done" if self._unfinished else f"exit code {code}"
        return f"the worker ended with {ended} and left no record{said}"

    def ending(self) -> str:
        """How the worker ended: empty if well, else the last line that it printed."""
        code = self.process.returncode
        assert code is not None
        if code == 0:
            return ""
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        lines = self._last_lines()
        return lines[-1] if lines else f"exit code {code}"

    def _last_lines(self) -> list[str]:
        """The last lines that this worker printed, at most 50; the file may begin with those of earlier attempts."""
        return tail(self.log, self._log_start)

    def _end_group(self) -> None:
        """End what the worker started too, such as the other ranks of its training."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _clean(self) -> None:
        for path in (self._file, self.progress, self.progress.with_suffix(".tmp")):
            path.unlink(missing_ok=True)


def folder_log(job: Job) -> Path:
    """The file that gets what a job's worker prints."""
    return Path(job["folder"]) / LOGS / f"{job['id']}.log"


def tail(path: Path, start: int = 0) -> list[str]:
    """The last lines of a plain file behind the byte `start`, at most 50; none of a file that is not there."""
    try:
        with open_plain(path, follow=False) as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - 20_000))
            return file.read(20_000).decode(errors="replace").strip().splitlines()[-50:]
    except (OSError, ValueError):
        return []


class Records:
    """The records of a job's stages, as they are when this is made: did anybody write one since?"""

    def __init__(self, job: Job):
        self._folders = [Path(job["folder"]) / stage / identity for stage, identity in job["stages"].items()]
        self._last = Path(job["folder"]) / job["last"] / job["stages"][job["last"]]
        self._before = self._stamps()

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [_stamp(folder / RECORD_FILE) for folder in self._folders]

    def changed(self) -> bool:
        return self._stamps() != self._before

    def done(self) -> bool:
        return stage_state(self._last).status == "done"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def record_death(job: Job, kind: str, message: str, lines: list[str], host: str | None = None) -> None:
    """Write the record that a process could not, for the first stage of its cell that isn't done.

    The caller works in the folder that the job's relative paths are meant from. The corpus is not opened: the job has
    the ids of the stages. Nothing is recorded where this version of the code, or changed weights of `model.init_from`,
    make other ids.

    Args:
        kind: name of the signal, or of the limit that was reached.
        lines: what the process printed last.
        host: the machine that it ran on; None for this one.
    """
    try:
        config = typed(job["config"])
        stages = planned_stages(config, job["corpus"], job["vocab_size"])
        if {stage.name: stage.id for stage in stages} != job["stages"]:
            return
        for stage in stages:
            target = stage.folder(Path(job["folder"]))
            if stage_state(target).status != "done":
                break
            if stage.name == job["last"]:
                return
        advice = memory_advice(kind, message, stage.name, config)
        message = f"{message}; {advice}" if advice else message
        write_record(
            target, stage=stage.name, config=stage.config, parent=stage.parent, status="failed", metrics={},
            timing={}, provenance=provenance(), error=describe_failure(kind, message, lines, target, host),
        )  # fmt: skip
    except (OSError, ValueError):
        pass  # the caller prints how the worker ended, and no more can be done
