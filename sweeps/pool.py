"""A pool of processes, one a cell: a crash, an out-of-memory kill or leaked GPU memory stays in its own process.

Pretraining runs first and once; the cells that need it start when it is done. Nothing here decides results: each
worker goes through idempotent stages, so killing any process at any moment costs time only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ratplus.record import provenance, write_record
from ratplus.status import cell_state, stage_state
from ratplus.sweeps.manifest import cell_config, stages_of


@dataclass
class Task:
    """A cell to be run up to a stage; `entry` is its manifest entry."""

    entry: dict
    last: str
    needs: str | None  # id of the pretraining that must be done first

    @property
    def name(self) -> str:
        return f"{self.entry['model']} {'pretrain' if self.last == 'pretrain' else self.entry['label']}"

    @property
    def id(self) -> str:
        return self.entry["stages"][self.last]


@dataclass
class Worker:
    task: Task
    process: subprocess.Popen
    slot: int
    progress: Path
    log: Path
    job: Path
    started: float

    def news(self) -> dict:
        """What the worker last said of itself; empty before its first step."""
        try:
            return json.loads(self.progress.read_text())
        except (OSError, ValueError):
            return {}


class Stopped(Exception):
    """The sweep was told to stop by a signal; workers saved their state."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to continue")
        self.number = number


def tasks_of(entries: list[dict], last: str) -> list[Task]:
    """Pretraining of each distinct model first, then the cells."""
    first = {entry["stages"]["pretrain"]: entry for entry in reversed(entries)}
    tasks = [Task(entry, "pretrain", None) for entry in reversed(first.values())]
    if last != "pretrain":
        # Cells that differ only beyond the stage `last` share it.
        unique = {entry["stages"][last]: entry for entry in reversed(entries)}
        tasks += [Task(entry, last, entry["stages"]["pretrain"]) for entry in reversed(unique.values())]
    return tasks


def run_pool(
    tasks: list[Task],
    folder: Path,
    workers: int,
    threads: int,
    on_event: Callable[[str, Task | None, list[Worker], str], None],
) -> dict[str, int]:
    """Run tasks in at most `workers` processes; returns the exit code of each task by its id.

    `on_event(kind, task, workers, text)`: kind is "start", "end", "skip" or "tick" (several a second).

    Raises:
        Stopped: SIGTERM or Ctrl-C; workers were told and have ended.
    """
    waiting, active, codes = list(tasks), [], {}
    caught: list[int] = []
    previous = {n: signal.signal(n, lambda number, _f: caught.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    try:
        while (waiting or active) and not caught:
            for task in [t for t in waiting if t.needs is None or t.needs in codes]:
                if task.needs is not None and codes[task.needs] != 0:
                    waiting.remove(task)
                    codes[task.id] = codes[task.needs]
                    on_event("skip", task, active, "its pretraining failed")
                elif len(active) == workers:
                    continue
                elif cell_state(folder, task.entry["stages"], task.last).status == "done":
                    waiting.remove(task)
                    codes[task.id] = 0
                    on_event("skip", task, active, "already done")
                else:
                    waiting.remove(task)
                    slot = min(set(range(workers)) - {w.slot for w in active})
                    active.append(_start(task, folder, slot, threads))
                    on_event("start", task, active, "")
            for worker in [w for w in active if w.process.poll() is not None]:
                active.remove(worker)
                codes[worker.task.id] = worker.process.returncode
                _clean(worker)
                if worker.process.returncode < 0:
                    _record_death(worker, folder)
                on_event("end", worker.task, active, _ending(worker))
            on_event("tick", None, active, "")
            time.sleep(0.1)
        if caught:
            raise Stopped(caught[0])
        return codes
    finally:
        _stop(active)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(task: Task, folder: Path, slot: int, threads: int) -> Worker:
    base = folder / "logs" / task.id
    job, progress, log = (base.with_suffix(s) for s in (".job.json", ".progress.json", ".log"))
    config = cell_config(task.entry)
    config["run"] = {**config["run"], "threads": config["run"]["threads"] or threads}
    content = {"config": config, "folder": str(folder.resolve()), "last": task.last, "progress": str(progress)}
    job.write_text(json.dumps(content))
    progress.unlink(missing_ok=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ratplus.sweeps.worker", str(job)],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment(slot, threads),
            # Ctrl-C reaches the pool alone, which passes it on once.
            start_new_session=True,
        )  # fmt: skip
    return Worker(task, process, slot, progress, log, job, time.monotonic())


def _environment(slot: int, threads: int) -> dict:
    """One GPU for each worker, in turn, of those that this process may use; CPU threads divided."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpus() if allowed is None else [g for g in allowed.split(",") if g]  # "" hides them all
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _gpus() -> list[str]:
    """Indices of this machine's NVIDIA GPUs, without starting CUDA in this process."""
    devices = Path("/dev")
    return sorted(p.name.removeprefix("nvidia") for p in devices.glob("nvidia[0-9]*")) if devices.exists() else []


def _clean(worker: Worker) -> None:
    for path in (worker.job, worker.progress, worker.progress.with_suffix(".tmp")):
        path.unlink(missing_ok=True)


def _ending(worker: Worker) -> str:
    """How a worker ended: empty if well, else the last line that it said."""
    code = worker.process.returncode
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    try:
        lines = worker.log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"exit code {code}"


def _record_death(worker: Worker, folder: Path) -> None:
    """A killed process cannot write its own record: the pool does, for the first stage that is not done."""
    try:
        for stage in stages_of(worker.task.entry):
            target = stage.folder(folder)
            if stage_state(target).status != "done":
                break
        error = {
            "type": signal.Signals(-worker.process.returncode).name,
            "message": _ending(worker),
            "traceback": [],
            "host": socket.gethostname(),
        }
        write_record(
            target, stage=stage.name, config=stage.config, parent=stage.parent, status="failed", metrics={},
            timing={}, provenance=provenance(), error=error,
        )  # fmt: skip
    except (OSError, ValueError):
        pass  # nothing more can be done than to report it, which the caller does


def _stop(active: list[Worker]) -> None:
    """Tell the workers to save and stop; those that don't within 30 s are killed."""
    for worker in active:
        if worker.process.poll() is None:
            worker.process.terminate()
    deadline = time.monotonic() + 30
    for worker in active:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        _clean(worker)
