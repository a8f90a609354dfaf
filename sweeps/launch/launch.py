"""Running planned cells to their end: choosing the launcher, showing progress, and saying what failed and why."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.config.cell import Config
from ratplus.records.lock import LockLost
from ratplus.records.manifest import Entry
from ratplus.records.status import State, cell_state, stage_state
from ratplus.stages.run_stage import tidy
from ratplus.sweeps.batch.jobs_file import JobsUnknown, live_jobs
from ratplus.sweeps.batch.sbatch_options import check_gpus
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError, mistake_line, say_error
from ratplus.sweeps.launch.cell import EXIT_FAILED, code_of, run_cell
from ratplus.sweeps.launch.lost_work import record_lost, record_lost_jobs
from ratplus.sweeps.launch.progress import LOGS, ProgressFile, at_work
from ratplus.sweeps.launch.work import WorkItem, due_items, threads_per_cell, work_items
from ratplus.training.errors import Diverged, PeerFailed
from ratplus.training.ranks import external_place

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ratplus.sweeps.launch.slurm import Submission

_MOST_ERRORS = 10
# Between two questions to the cluster about jobs that are waited for.
_FIRST_LOOK_SECONDS = 2.0
_LAST_LOOK_SECONDS = 15.0


@dataclass
class Ended:
    """How a call ended.

    Attributes:
        code: its exit code.
        complete: whether all of its cells have ended; those that were only submitted as jobs have not.
    """

    code: int
    complete: bool = True


def launch(entries: list[Entry], folder: Path, last: str, config: Config) -> Ended:
    """Run cells up to the stage `last` as `launcher`, `retry` and `max_failures` of the config say.

    Raises:
        UsageError: the launcher isn't there or refuses.
    """
    launcher = config.launcher
    if config.trainer.nodes > 1 and launcher.kind != "local":
        raise UsageError(f"trainer.nodes={config.trainer.nodes}: launcher={launcher.kind} gives each cell one machine")
    if launcher.kind != "local":
        check_gpus(launcher, config.trainer.devices, config.run.accelerator)
    place = external_place()
    if place is not None and (launcher.kind != "local" or len(entries) > 1):
        raise UsageError(
            f"{place.starter} started {place.world} ranks: together they run one cell; for a sweep, call ratplus once "
            "and let trainer.devices start the ranks of each cell"
        )
    items = work_items(entries, last)
    if place is None or place.rank == 0:
        try:
            record_lost(folder, items)  # so that retry=failed finds what nobody has looked at since
        except JobsUnknown as error:
            if launcher.kind == "slurm":
                raise UsageError(f"launcher=slurm: cannot tell which jobs are queued already: {error}") from None
    cells = [item for item in items if item.last == last]
    todo = due_items(items, folder, last, config.retry)
    if launcher.kind == "local" and len(entries) == 1:
        # After a single cell no other follows that it could harm, so it runs in this process. A finished cell runs here
        # too, and says that it is done.
        if not todo and cells[0].state(folder).status != "done":
            return Ended(_conclude(cells, folder, config.retry, {}))
        return Ended(_run_single(entries[0], folder, last))
    if launcher.kind == "slurm":
        return _submit_jobs(cells, todo, folder, last, config)

    from ratplus.sweeps.launch.display import SweepDisplay
    from ratplus.sweeps.launch.pool import Stopped, run_pool

    try:
        with _starter(config, folder, len(todo)) as (workers, start), SweepDisplay(len(todo)) as display:
            outcomes = run_pool(todo, folder, workers, start, display.event, config.max_failures)
    except Stopped as stop:
        print(f"ratplus: {stop}", file=sys.stderr)
        return Ended(128 + stop.number, complete=False)
    endings = {item.id: outcomes[item.id].text for item in todo if item.id in outcomes and outcomes[item.id].code}
    not_started = sum(item.last == last and item.id not in outcomes for item in todo)
    if not_started:
        print(f"max_failures={config.max_failures} reached: {not_started} cells were not started", file=sys.stderr)
    return Ended(_conclude(cells, folder, config.retry, endings))


@contextmanager
def _starter(config: Config, folder: Path, items: int):
    """Give (items at once, start) of a launcher that the pool drives, for so many items."""
    launcher = config.launcher
    if launcher.kind == "ray":
        from ratplus.sweeps.launch.ray import ray_cluster

        with ray_cluster(launcher) as (workers, starter):
            yield workers, starter(folder)
    else:
        from ratplus.sweeps.launch.local import LocalRun, warm_up

        threads = threads_per_cell(launcher)
        gpus = config.trainer.devices if launcher.gpus is None else launcher.gpus
        assert launcher.workers is not None  # LauncherSection sees to it for launcher=local
        warm_up(items, launcher.workers, threads)
        yield launcher.workers, lambda item, slot: LocalRun(item, slot, folder, threads, gpus)


def _conclude(cells: list[WorkItem], folder: Path, retry: str, endings: dict[str, str]) -> int:
    """Print which cells failed and why, and last how many did; EXIT_FAILED if any did.

    Args:
        endings: for the items that ended badly in this call, by id, the last line of each; records know of the others.
    """
    read_state = lru_cache(maxsize=None)(stage_state)
    _tidy_done(cells, folder, read_state)
    failed = []
    for item in cells:
        state = item.state(folder, read_state)
        if state.status in ("failed", "damaged"):
            failed.append((item.name, state.error))
        elif item.id in endings and state.status != "done":
            failed.append((item.name, endings[item.id]))
    for name, error in failed[:_MOST_ERRORS]:
        print(f"  {name}: {error}", file=sys.stderr)
    if len(failed) > _MOST_ERRORS:
        print(f"  ... and {len(failed) - _MOST_ERRORS} more", file=sys.stderr)
    if failed:
        status = shlex.join(["ratplus", "status", str(folder)])
        again = "with retry=all or retry=failed tries them again" if retry == "none" else "retries them"
        print(
            f"{len(failed)} of {len(cells)} cells failed; `{status}` says why, logs are in "
            f"{folder / LOGS}; running the same command again {again}",
            file=sys.stderr,
        )
    return EXIT_FAILED if failed else 0


def _tidy_done(cells: list[WorkItem], folder: Path, read_state: Callable[[Path], State]) -> None:
    """Remove what a process left that was killed behind its record: no worker looks at a done cell again."""
    stages = {
        folder / stage / key
        for item in cells if item.state(folder, read_state).status == "done"
        for stage, key in item.entry["stages"].items()
    }  # fmt: skip
    for stage in stages:
        if read_state(stage).status == "done":
            with suppress(OSError):  # a folder that may only be read: what lies there harms no result
                tidy(stage)


def _run_single(entry: Entry, folder: Path, last: str) -> int:
    """Exit code of a single cell, run in this process."""
    from ratplus.sweeps.launch.console import PipeConsole
    from ratplus.sweeps.launch.display import progress_bars

    place = external_place()
    first_rank = place is None or place.rank == 0
    console = PipeConsole(stderr=True, highlight=False, soft_wrap=True)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    file = ProgressFile(folder / LOGS / f"{entry['stages'][last]}.progress.json")
    failures: list[Exception] = []

    def failed(error: Exception) -> int:
        if not first_rank:
            return _say_failure(error, entry, folder, last)
        failures.append(error)  # told below the bars, as the last line
        return code_of(error)

    with progress_bars(console) as bars:
        shown: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int, numbers: dict) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(f"{entry['model']} {entry['label']}: {stage}", total=total, note="")
            note = f"loss {float(numbers['loss']):.3f}" if "loss" in numbers else ""
            bars.update(shown[stage], completed=done, note=note)
            file.write(stage, done, total, numbers)

        try:
            with _terminated_in_order(), at_work(folder, entry["stages"][last]) if first_rank else nullcontext():
                code = run_cell(
                    cell_config(entry), entry["stages"], folder, last, progress,
                    print_line=lambda line: console.print(line, markup=False), print_failure=failed,
                )  # fmt: skip
        finally:
            file.remove()
    return _say_failure(failures[0], entry, folder, last) if failures else code


def _say_failure(error: Exception, entry: Entry, folder: Path, last: str) -> int:
    """One line for a failure in this process, as any other mistake is told; returns the exit code.

    Raises:
        Exception: the error itself, where no record tells of it and the way out of all commands knows better.
    """
    state = cell_state(folder, entry["stages"], last)
    told = state.record["error"] if state.record is not None and state.status == "failed" else None
    if told is None or told["type"] != getattr(error, "failure", {"type": type(error).__name__})["type"]:
        if not isinstance(error, (Diverged, LockLost, PeerFailed)):
            raise error
        say_error(str(error))
        return EXIT_FAILED
    words = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.filename:
        words = f"{error.filename}: {words}"
    stage_id = entry["stages"][state.stage]
    line = f"{state.stage} {stage_id}: {words}"
    if mistake_line(error) is None and not isinstance(error, Diverged):
        show = shlex.join(["ratplus", "show", stage_id, str(folder)])
        line = f"{state.stage} {stage_id}: {told['type']}: {words}; `{show}` has the trace"
    say_error(line)
    return code_of(error)


@contextmanager
def _terminated_in_order():
    """Let SIGTERM end this process as Ctrl-C does, with locks and notes removed; training, which saves, has its own."""

    def leave(number: int, _frame) -> None:
        raise SystemExit(128 + number)

    if external_place() is not None or threading.current_thread() is not threading.main_thread():
        yield  # torchrun and srun end their ranks themselves
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _submit_jobs(cells: list[WorkItem], todo: list[WorkItem], folder: Path, last: str, config: Config) -> Ended:
    """Submit the jobs and return; with launcher.wait, return only when they have ended."""
    if not todo:
        return Ended(_conclude(cells, folder, config.retry, {}))
    from ratplus.sweeps.batch.reasons import changed_keys_lines, queue_lines
    from ratplus.sweeps.launch.slurm import job_keys, submit

    launcher = config.launcher
    submission = submit(todo, folder, last, launcher, config.max_failures)
    pretrainings = sum(item.last != last and item.id in submission.jobs for item in todo)
    count, already = len(submission.jobs), submission.already.values()
    print(
        f"submitted {count} jobs ({pretrainings} pretrainings, {count - pretrainings} cells): "
        f"{' '.join(submission.arrays) or 'none'}"
        + (f"; {len(already)} are queued or running already" if already else "")
    )
    most = submission.most
    if most is not None and most < min(launcher.array_size, count):
        print(f"the cluster allows {most} tasks an array, which is less than launcher.array_size={launcher.array_size}")
    for line in changed_keys_lines(already, job_keys(launcher)) + queue_lines(already):
        print(line)
    if submission.arrays and launcher.cluster == "slurm":
        print(f"watch: squeue -j {','.join(submission.arrays)}; stop: scancel {' '.join(submission.arrays)}")
    place = shlex.quote(str(folder))
    print(f"progress: ratplus status {place} --watch; then the table: ratplus report {place}", flush=True)
    if not launcher.wait:
        return Ended(0, complete=False)
    settled = _wait_for_jobs(submission, todo, folder)
    code = _conclude(cells, folder, config.retry, {})
    left = sum(item.state(folder).status != "done" for item in cells)
    if code == 0 and left:
        print(f"{left} of {len(cells)} cells are not done; `ratplus status {place}` tells of each", file=sys.stderr)
    return Ended(EXIT_FAILED if left else code, complete=settled)


def _wait_for_jobs(submission: Submission, todo: list[WorkItem], folder: Path) -> bool:
    """Wait until none of the items has a batch job that is queued or running; print how many have when that changes.

    Returns:
        False if some are left in the queue that can never start.
    """
    from ratplus.sweeps.batch.reasons import queue_lines, stuck

    ids = {item.id for item in todo}
    printed: list[str] = []
    seconds = _FIRST_LOOK_SECONDS
    while True:
        for handle in submission.handles if submission.cluster == "local" else ():
            handle.done()  # collects the process once it has ended
        try:
            live = live_jobs(folder, ids.__contains__)
        except JobsUnknown as error:  # the queue's server may be away for a while
            live, lines, seconds = {}, [f"{error}; asking again"], _LAST_LOOK_SECONDS
        else:
            if not live:
                record_lost_jobs(folder, live, ids.__contains__)
                return True
            states = [job.state for job in live.values()]
            lines = [f"{states.count('running')} jobs running, {states.count('queued')} queued"]
            lines += queue_lines(live.values())
        for line in lines:
            if line not in printed:
                print(line, file=sys.stderr, flush=True)
        printed = lines
        if live and stuck(live.values()):
            record_lost_jobs(folder, live, ids.__contains__)
            return False
        time.sleep(1.0 if submission.cluster == "local" else seconds)
        seconds = min(seconds * 1.5, _LAST_LOOK_SECONDS)
