"""How far a running cell is: a small file below `<sweep>/logs`, which the cell's process writes and others read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ratplus.pattern import is_whole
from ratplus.records.reading import open_own, read_json

# The folder of a sweep folder that holds job files, progress files and what workers print.
LOGS = "logs"


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
