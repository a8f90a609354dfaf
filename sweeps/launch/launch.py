"""Running planned cells to their end: choosing the launcher, showing progress, and saying what failed and why."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.config.cell import Config
from ratplus.records.manifest import Entry
from ratplus.records.status import stage_state
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.cell import EXIT_FAILED, run_cell
from ratplus.sweeps.launch.progress import LOGS, ProgressFile
from ratplus.sweeps.launch.work import WorkItem, due_items, threads_per_cell, work_items
from ratplus.training.ranks import external_place

if TYPE_CHECKING:
    from rich.progress import TaskID

_MOST_ERRORS = 10


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
    place = external_place()
    if place is not None and (launcher.kind != "local" or len(entries) > 1):
        raise UsageError(
            f"{place.starter} started {place.world} ranks: together they run one cell; for a sweep, call ratplus once "
            "and let trainer.devices start the ranks of each cell"
        )
    items = work_items(entries, last)
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
        with _starter(config, folder) as (workers, start), SweepDisplay(len(todo)) as display:
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
def _starter(config: Config, folder: Path):
    """Give (items at once, start) of a launcher that the pool drives."""
    launcher = config.launcher
    if launcher.kind == "ray":
        from ratplus.sweeps.launch.ray import ray_cluster

        with ray_cluster(launcher) as (workers, starter):
            yield workers, starter(folder)
    else:
        from ratplus.sweeps.launch.local import LocalRun

        threads = threads_per_cell(launcher)
        gpus = config.trainer.devices if launcher.gpus is None else launcher.gpus
        yield launcher.workers, lambda item, slot: LocalRun(item, slot, folder, threads, gpus)


def _conclude(cells: list[WorkItem], folder: Path, retry: str, endings: dict[str, str]) -> int:
    """Print which cells failed and why, and last how many did; EXIT_FAILED if any did.

    Args:
        endings: for the items that ended badly in this call, by id, the last line of each; records know of the others.
    """
    read_state = lru_cache(maxsize=None)(stage_state)
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


def _run_single(entry: Entry, folder: Path, last: str) -> int:
    """Exit code of a single cell, run in this process."""
    from ratplus.sweeps.launch.console import PipeConsole
    from ratplus.sweeps.launch.display import progress_bars

    console = PipeConsole(stderr=True, highlight=False, soft_wrap=True)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    file = ProgressFile(folder / LOGS / f"{entry['stages'][last]}.progress.json")
    with progress_bars(console) as bars:
        shown: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int, numbers: dict) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(f"{entry['model']} {entry['label']}: {stage}", total=total, note="")
            note = f"loss {float(numbers['loss']):.3f}" if "loss" in numbers else ""
            bars.update(shown[stage], completed=done, note=note)
            file.write(stage, done, total, numbers)

        try:
            return run_cell(
                cell_config(entry), entry["stages"], folder, last, progress,
                print_line=lambda line: console.print(line, markup=False),
            )  # fmt: skip
        finally:
            file.remove()


def _submit_jobs(cells: list[WorkItem], todo: list[WorkItem], folder: Path, last: str, config: Config) -> Ended:
    """Submit the jobs and return; with launcher.wait, return only when they have ended."""
    if not todo:
        return Ended(_conclude(cells, folder, config.retry, {}))
    from ratplus.sweeps.launch.slurm import submit

    submission = submit(todo, folder, last, config.launcher, config.max_failures)
    pretrainings = sum(item.last != last and item.id in submission.jobs for item in todo)
    count = len(submission.jobs)
    print(
        f"submitted {count} jobs ({pretrainings} pretrainings, {count - pretrainings} cells): "
        f"{' '.join(submission.arrays) or 'none'}"
        + (f"; {submission.already} are queued or running already" if submission.already else "")
    )
    if submission.arrays and config.launcher.cluster == "slurm":
        print(f"watch: squeue -j {','.join(submission.arrays)}; stop: scancel {' '.join(submission.arrays)}")
    place = shlex.quote(str(folder))
    print(f"progress: ratplus status {place} --watch; then the table: ratplus report {place}", flush=True)
    if not config.launcher.wait:
        return Ended(0, complete=False)
    _wait_for_jobs(submission, todo, folder)
    code = _conclude(cells, folder, config.retry, {})
    left = sum(item.state(folder).status != "done" for item in cells)
    if code == 0 and left:
        print(f"{left} of {len(cells)} cells are not done; `ratplus status {folder}` tells of each", file=sys.stderr)
    return Ended(EXIT_FAILED if left else code)


def _wait_for_jobs(submission, todo: list[WorkItem], folder: Path) -> None:
    """Wait until none of the items has a batch job that is queued or running; print how many have when that changes."""
    from ratplus.sweeps.launch.batch_jobs import JobsUnknown, live_jobs
    from ratplus.sweeps.launch.lost_jobs import record_lost_jobs

    printed = None
    while True:
        for handle in submission.handles if submission.cluster == "local" else ():
            handle.done()  # collects the process once it has ended
        try:
            live = live_jobs(folder)
        except JobsUnknown as error:  # the queue's server may be away for a while
            print(f"{error}; asking again", file=sys.stderr)
            time.sleep(60)
            continue
        left = [live[item.id][1] for item in todo if item.id in live]
        if not left:
            record_lost_jobs(folder, live)
            return
        line = f"{left.count('running')} jobs running, {left.count('queued')} queued"
        if line != printed:
            print(line, file=sys.stderr, flush=True)
            printed = line
        time.sleep(1.0 if submission.cluster == "local" else 15.0)
