"""Small files below `<sweep>/logs` on a cell at work: which processes work on it, and how far they are.

What is left of the first tells of processes that were killed outright.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from ratplus.pattern import is_whole
from ratplus.records.atomic import write_atomically
from ratplus.records.process import Identity, identity
from ratplus.records.reading import open_own, read_json

# The folder of a sweep folder that holds job files, progress files and what workers print.
LOGS = "logs"
SUFFIX = ".job.json"


class ProgressFile:
    """How far a cell at work is, for `ratplus status` and the pool: a small file, rewritten twice a second.

    Keys: stage, done, total, and loss where there is one.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._written_at = 0.0

    def write(self, stage: str, done: int, total: int, numbers: dict) -> None:
        """Write the file, unless it was written within the last half second and the stage is not at its end."""
        now = time.monotonic()
        if now - self._written_at <= 0.5 and done != total:
            return
        self._written_at = now
        loss = {k: float(v) for k, v in numbers.items() if k == "loss"}
        message = {"stage": stage, "done": done, "total": total}
        # The file is worth no fsync; the rename only keeps a reader from seeing half a line.
        temporary = self.path.with_suffix(".tmp")
        try:
            with open_own(temporary, append=False) as file:
                file.write(json.dumps(message | loss))
            os.replace(temporary, self.path)
        except OSError:
            pass  # a full disk must not stop the work whose progress this is

    def remove(self) -> None:
        for path in (self.path, self.path.with_suffix(".tmp")):
            path.unlink(missing_ok=True)


def read_progress(path: Path) -> dict:
    """What a worker last wrote of its progress: stage, done, total, ...; empty before its first step."""
    try:
        progress = read_json(path, follow=False)
        whole = isinstance(progress["stage"], str) and all(is_whole(progress[key]) for key in ("done", "total"))
        return progress if whole else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# ---- who is at work ------------------------------------------------------------------------------------------------


class Watch(TypedDict):
    """What the file of a job says of the processes that work on it, beside the job itself.

    Attributes:
        processes: the one that would record a failure, and the one that works; the same where a cell runs in the
            command's own process.
        log_start: where in the log file the lines of this attempt begin.
    """

    processes: list[Identity]
    log_start: int


def job_file(folder: Path, item: str) -> Path:
    """The file that says who works on an item of a sweep folder."""
    return Path(folder) / LOGS / f"{item}{SUFFIX}"


@contextmanager
def at_work(folder: Path, item: str) -> Generator[None]:
    """Note that this process works on an item itself; the note stays only if the process is killed outright."""
    path = job_file(folder, item)
    log = path.with_name(f"{item}.log")
    watch: Watch = {"processes": [identity()], "log_start": log.stat().st_size if log.is_file() else 0}
    write_atomically(path, json.dumps({"id": item, **watch}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
