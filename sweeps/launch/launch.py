"""From planned cells to their end: picks the launcher, shows progress, and says what failed and why."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.records.status import stage_state
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.cell import EXIT_FAILED, ProgressFile, run_cell
from ratplus.sweeps.launch.child import LOGS
from ratplus.sweeps.launch.tasks import Task, due, tasks_of, threads_of
from ratplus.training.ranks import external_place

_MOST_ERRORS = 10


@dataclass
class Ended:
    """Exit code of a call, and whether all of its cells have come to an end (jobs that were submitted have not)."""

    code: int
    complete: bool = True


def launch(entries: list[dict], folder: Path, last: str, config: Config) -> Ended:
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
    tasks = tasks_of(entries, last)
    cells = [task for task in tasks if task.last == last]
    todo = due(tasks, folder, last, config.retry)
    if launcher.kind == "local" and len(entries) == 1:
        # One cell leaves nothing behind for a next one, so it runs in this process. Also when it is done: it says so.
        if not todo and cells[0].state(folder).status != "done":
            return Ended(_conclude(cells, folder, config.retry, {}))
        return Ended(_one(entries[0], folder, last))
    if launcher.kind == "slurm":
        return _slurm(cells, todo, folder, last, config)

    from ratplus.sweeps.launch.display import SweepDisplay
    from ratplus.sweeps.launch.pool import Stopped, run_pool

    try:
        with _starter(config, folder) as (workers, start), SweepDisplay(len(todo)) as display:
            outcomes = run_pool(todo, folder, workers, start, display.event, config.max_failures)
    except Stopped as stop:
        print(f"ratplus: {stop}", file=sys.stderr)
        return Ended(128 + stop.number, complete=False)
    said = {task.id: outcomes[task.id].text for task in todo if task.id in outcomes and outcomes[task.id].code}
    held = sum(task.last == last and task.id not in outcomes for task in todo)
    if held:
        print(f"max_failures={config.max_failures} reached: {held} cells were not started", file=sys.stderr)
    return Ended(_conclude(cells, folder, config.retry, said))


@contextmanager
def _starter(config: Config, folder: Path):
    """(tasks at once, start) of the launchers that the pool drives."""
    launcher = config.launcher
    if launcher.kind == "ray":
        from ratplus.sweeps.launch.ray import ray_cluster

        with ray_cluster(launcher) as (workers, starter):
            yield workers, starter(folder)
    else:
        from ratplus.sweeps.launch.local import LocalRun

        threads = threads_of(launcher)
        gpus = config.trainer.devices if launcher.gpus is None else launcher.gpus
        yield launcher.workers, lambda task, slot: LocalRun(task, slot, folder, threads, gpus)


def _conclude(cells: list[Task], folder: Path, retry: str, said: dict[str, str]) -> int:
    """Say which cells failed and why, the count last; EXIT_FAILED if any did or is left undone.

    Args:
        said: last words of the tasks that ended badly in this call, by id; records know of the others.
    """
    look = lru_cache(maxsize=None)(stage_state)
    failed = []
    for task in cells:
        state = task.state(folder, look)
        if state.status in ("failed", "damaged"):
            failed.append((task.name, state.error))
        elif task.id in said and state.status != "done":
            failed.append((task.name, said[task.id]))
    for name, error in failed[:_MOST_ERRORS]:
        print(f"  {name}: {error}", file=sys.stderr)
    if len(failed) > _MOST_ERRORS:
        print(f"  ... and {len(failed) - _MOST_ERRORS} more", file=sys.stderr)
    if failed:
        again = "with retry=all or retry=failed tries them again" if retry == "none" else "retries them"
        print(
            f"{len(failed)} of {len(cells)} cells failed; `ratplus status {folder}` says why, logs are in "
            f"{folder / LOGS}; running the same command again {again}",
            file=sys.stderr,
        )
    return EXIT_FAILED if failed else 0


def _one(entry: dict, folder: Path, last: str) -> int:
    """A single cell runs in this process."""
    from rich.console import Console

    from ratplus.sweeps.launch.display import progress_bars

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    file = ProgressFile(folder / LOGS / f"{entry['stages'][last]}.progress.json")
    with progress_bars(console) as bars:
        shown: dict[str, int] = {}

        def progress(stage: str, done: int, total: int, numbers: dict) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(f"{entry['model']} {entry['label']}: {stage}", total=total, note="")
            note = f"loss {float(numbers['loss']):.3f}" if "loss" in numbers else ""
            bars.update(shown[stage], completed=done, note=note)
            file.tell(stage, done, total, numbers)

        try:
            return run_cell(
                cell_config(entry), folder, last, progress, say=lambda line: console.print(line, markup=False)
            )
        finally:
            file.remove()


def _slurm(cells: list[Task], todo: list[Task], folder: Path, last: str, config: Config) -> Ended:
    """Submit; then leave, or with launcher.wait stay until the jobs have ended."""
    if not todo:
        return Ended(_conclude(cells, folder, config.retry, {}))
    from ratplus.sweeps.launch.slurm import submit

    submission = submit(todo, folder, last, config.launcher, config.max_failures)
    first = sum(task.last != last and task.id in submission.jobs for task in todo)
    print(
        f"submitted {len(submission.jobs)} jobs ({first} pretrainings, {len(submission.jobs) - first} cells): "
        f"{' '.join(submission.arrays) or 'none'}"
        + (f"; {submission.already} are queued or running already" if submission.already else "")
    )
    if submission.arrays and config.launcher.cluster == "slurm":
        print(f"watch: squeue -j {','.join(submission.arrays)}; stop: scancel {' '.join(submission.arrays)}")
    print(f"progress: ratplus status {folder} --watch; then the table: ratplus report {folder}", flush=True)
    if not config.launcher.wait:
        return Ended(0, complete=False)
    _wait(submission, todo, folder)
    return Ended(_conclude(cells, folder, config.retry, {}))


def _wait(submission, todo: list[Task], folder: Path) -> None:
    """Until none of the tasks has a job that is queued or running; says how many there are when it changes."""
    from ratplus.sweeps.launch.jobs import JobsUnknown, live_jobs

    told = None
    while True:
        for handle in submission.handles if submission.cluster == "local" else ():
            handle.done()  # reaps the process
        try:
            live = live_jobs(folder)
        except JobsUnknown as error:  # the queue's server may be away for a while
            print(f"{error}; asking again", file=sys.stderr)
            time.sleep(60)
            continue
        left = [live[task.id][1] for task in todo if task.id in live]
        if not left:
            return
        now = f"{left.count('running')} jobs running, {left.count('queued')} queued"
        if now != told:
            print(now, file=sys.stderr, flush=True)
            told = now
        time.sleep(1.0 if submission.cluster == "local" else 15.0)
