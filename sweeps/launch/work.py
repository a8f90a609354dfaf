"""What a sweep has to run: its cells and the pretrainings that they need, as plain jobs that any launcher can start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.config.run import LauncherSection
from ratplus.records.manifest import Entry
from ratplus.records.secrets import scrub_words
from ratplus.records.status import State, cell_state, stage_state
from ratplus.sweeps.define.manifest import cell_config


class Job(TypedDict):
    """All that a process on any machine needs to run a cell up to a stage: plain data, none of it of this environment.

    Attributes:
        id: of the stage `last`.
        last: name of the stage to run up to.
        needs: id of the pretraining that must be done first; None for a pretraining.
        stages: ids of the cell's stages by name, as the manifest has them.
        corpus: `Corpus.identity` of the text that these ids were made with.
        vocab_size: of the model, with the symbols of the recall task.
        config: the cell's plain config.
        folder: the sweep folder, absolute.
        cwd: the folder that relative paths in the config are meant from.
        threads: CPU threads of the process.
        command: the command line that the user gave, for records; keys and tokens in it are masked.
        progress: the progress file; `child.Child` adds it.
    """

    id: str
    last: str
    needs: str | None
    stages: dict[str, str]
    corpus: dict[str, Any]
    vocab_size: int
    config: dict[str, Any]
    folder: str
    cwd: str
    threads: int
    command: list[str]
    progress: NotRequired[str]


@dataclass
class WorkItem:
    """A cell to be run up to a stage, for a launcher; `entry` is the cell's manifest entry."""

    entry: Entry
    last: str
    needs: str | None  # id of the pretraining that must be done first

    @property
    def name(self) -> str:
        """Words for a person: model, pattern, seed, and whether it is a pretraining alone."""
        shared = self.last == "pretrain" and not self.entry["config"]["train"]["pretrain"].get("sparse")
        words = [self.entry["model"], *([] if shared else [self.entry["label"]])]
        words += [f"seed={self.entry['seed']}"] if self.entry["seed"] else []
        return " ".join([*words, *(["pretrain"] if self.last == "pretrain" else [])])

    @property
    def id(self) -> str:
        """Id of the stage `last`; no two items of a sweep share it."""
        return self.entry["stages"][self.last]

    def state(self, folder: Path, read_state: Callable[[Path], State] = stage_state) -> State:
        """How far the item is in a sweep folder; `read_state` may be a cached `stage_state`."""
        return cell_state(folder, self.entry["stages"], self.last, read_state)

    def job(self, folder: Path, threads: int) -> Job:
        """The item as plain data, meant from the current folder; `threads` is for cells that set no `run.threads`."""
        config = cell_config(self.entry)
        config["run"] = {**config["run"], "threads": config["run"]["threads"] or threads}
        return {
            "id": self.id,
            "last": self.last,
            "needs": self.needs,
            "stages": self.entry["stages"],
            "corpus": self.entry["corpus"],
            "vocab_size": self.entry["config"]["model"]["vocab_size"],
            "config": config,
            "folder": str(folder.resolve()),
            "cwd": os.getcwd(),
            "threads": threads,
            "command": scrub_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }


def work_items(entries: list[Entry], last: str) -> list[WorkItem]:
    """The pretraining of each distinct model, then the cells; cells that share the stage `last` are one item."""
    pretrainings = {entry["stages"]["pretrain"]: entry for entry in reversed(entries)}
    items = [WorkItem(entry, "pretrain", None) for entry in reversed(pretrainings.values())]
    if last != "pretrain":
        distinct = {entry["stages"][last]: entry for entry in reversed(entries)}
        items += [WorkItem(entry, last, entry["stages"]["pretrain"]) for entry in reversed(distinct.values())]
    return items


def due_items(items: list[WorkItem], folder: Path, last: str, retry: str) -> list[WorkItem]:
    """The items that a call has to run: cells that aren't done, narrowed by `retry`, and pretrainings that they need.

    `retry` is all (whatever isn't done), failed (failed and damaged cells) or none (only cells that never failed).
    """
    allowed = {
        "all": ("missing", "running", "failed", "damaged"),
        "failed": ("failed", "damaged"),
        "none": ("missing", "running"),
    }[retry]
    read_state = lru_cache(maxsize=None)(stage_state)
    cells = [item for item in items if item.last == last and item.state(folder, read_state).status in allowed]
    needed = {item.needs for item in cells}
    pretrainings = [
        item for item in items
        if item.last != last and item.id in needed and item.state(folder, read_state).status != "done"
    ]  # fmt: skip
    return pretrainings + cells


def threads_per_cell(launcher: LauncherSection) -> int:
    """CPU threads of each cell: as given, else a share of this machine's cores (local) or the cores asked for."""
    if launcher.threads is not None:
        return launcher.threads
    if launcher.kind != "local":
        return launcher.cpus or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert launcher.workers is not None  # LauncherSection sees to it for launcher=local
    return max(1, cores // launcher.workers)
