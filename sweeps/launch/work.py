"""What a sweep has to run: its cells and the pretrainings that they need, as plain jobs that any launcher can start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.records.manifest import Entry
from ratplus.records.secrets import scrub_words
from ratplus.records.status import State, cell_state, stage_state
from ratplus.sweeps.define.manifest import cell_config


class Job(TypedDict):
    """All that a process on any machine needs to run a task: plain data, without anything of this environment.

    Attributes:
        id: of the stage to be reached, `last`.
        last: the stage.
        needs: id of the pretraining that must be done first; None if there is none.
        config: plain config of the cell.
        folder: the sweep's, absolute.
        cwd: where relative paths of the config are meant from.
        threads: CPU threads of the process.
        command: what the user ran, secrets masked.
        progress: file that the process tells its progress in; `child.Child` adds it.
        requeues, minutes, grace_seconds, max_failures, submission: limits of a batch job; `launcher=slurm` adds them.
    """

    id: str
    last: str
    needs: str | None
    config: dict[str, Any]
    folder: str
    cwd: str
    threads: int
    command: list[str]
    progress: NotRequired[str]
    requeues: NotRequired[int]
    minutes: NotRequired[int]
    grace_seconds: NotRequired[int]
    max_failures: NotRequired[int | None]
    submission: NotRequired[str]


@dataclass
class Task:
    """A cell to be run up to a stage; `entry` is its manifest entry."""

    entry: Entry
    last: str
    needs: str | None  # id of the pretraining that must be done first

    @property
    def name(self) -> str:
        shared = self.last == "pretrain" and not self.entry["config"]["train"]["pretrain"].get("sparse")
        words = [self.entry["model"], *([] if shared else [self.entry["label"]])]
        words += [f"seed={self.entry['seed']}"] if self.entry["seed"] else []
        return " ".join([*words, *(["pretrain"] if self.last == "pretrain" else [])])

    @property
    def id(self) -> str:
        return self.entry["stages"][self.last]

    def state(self, folder: Path, look: Callable[[Path], State] = stage_state) -> State:
        return cell_state(folder, self.entry["stages"], self.last, look)

    def job(self, folder: Path, threads: int) -> Job:
        """What a launcher hands to the process that runs this."""
        config = cell_config(self.entry)
        config["run"] = {**config["run"], "threads": config["run"]["threads"] or threads}
        return {
            "id": self.id,
            "last": self.last,
            "needs": self.needs,
            "config": config,
            "folder": str(folder.resolve()),
            "cwd": os.getcwd(),
            "threads": threads,
            "command": scrub_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }


def tasks_of(entries: list[Entry], last: str) -> list[Task]:
    """Pretraining of each distinct model first, then the cells."""
    first = {entry["stages"]["pretrain"]: entry for entry in reversed(entries)}
    tasks = [Task(entry, "pretrain", None) for entry in reversed(first.values())]
    if last != "pretrain":
        # Cells that differ only beyond the stage `last` share it.
        unique = {entry["stages"][last]: entry for entry in reversed(entries)}
        tasks += [Task(entry, last, entry["stages"]["pretrain"]) for entry in reversed(unique.values())]
    return tasks


def due(tasks: list[Task], folder: Path, last: str, retry: str) -> list[Task]:
    """The tasks that a call has to run: cells that aren't done, narrowed by `retry`, and pretrainings that they need.

    `retry` is all (whatever isn't done), failed (failed and damaged cells) or none (only cells that never failed).
    """
    allowed = {
        "all": ("missing", "running", "failed", "damaged"),
        "failed": ("failed", "damaged"),
        "none": ("missing", "running"),
    }[retry]
    look = lru_cache(maxsize=None)(stage_state)
    cells = [task for task in tasks if task.last == last and task.state(folder, look).status in allowed]
    needed = {task.needs for task in cells}
    first = [t for t in tasks if t.last != last and t.id in needed and t.state(folder, look).status != "done"]
    return first + cells


def threads_of(launcher) -> int:
    """CPU threads of each cell: as given, else a share of this machine's cores (local) or the cores asked for."""
    if launcher.threads is not None:
        return launcher.threads
    if launcher.kind != "local":
        return launcher.cpus or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // launcher.workers)
