"""A pool of running tasks: pretraining first and once, the cells that need it when it is done, so many at once.

The pool knows nothing of processes or clusters: a launcher hands it `start`. Nothing here decides results.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ratplus.sweeps.launch.child import SAVE_SECONDS
from ratplus.sweeps.launch.tasks import Task


class Running(Protocol):
    """A task at work."""

    task: Task
    slot: int

    def poll(self) -> int | None:
        """Exit code, or None while it runs; the first code ends it."""

    def ending(self) -> str:
        """How it ended: empty if well, else one line."""

    def news(self) -> dict:
        """What it last said of itself: stage, done, total; empty before its first step."""

    def tell(self) -> None:
        """Ask it to save and stop; returns at once."""

    def stop(self, seconds: float) -> None:
        """Wait so long for that, then end it."""


@dataclass
class Outcome:
    code: int
    text: str  # why, if the code isn't 0


class Stopped(Exception):
    """The sweep was told to stop by a signal; workers saved their state."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to continue")
        self.number = number


def run_pool(
    tasks: list[Task],
    folder: Path,
    workers: int,
    start: Callable[[Task, int], Running],
    on_event: Callable[[str, Task | None, list[Running], str], None],
    max_failures: int | None = None,
) -> dict[str, Outcome]:
    """Run tasks, at most `workers` at once; returns how each ended by its id.

    After `max_failures` failures no more are started; those that were not have no outcome.

    Args:
        start: (task, slot) -> Running; slots are 0 ... workers - 1.
        on_event: called with (kind, task, running ones, text); kind is "start", "end", "skip" or "tick" (several a
            second).

    Raises:
        Stopped: SIGTERM or Ctrl-C; workers were told and have ended.
    """
    waiting, active, ended = list(tasks), [], {}
    pending = {task.id for task in tasks}
    failures = 0
    caught: list[int] = []
    previous = {n: signal.signal(n, lambda number, _f: caught.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while (waiting or active) and not caught:
            if max_failures is not None and failures >= max_failures:
                waiting.clear()
            # A pretraining that is not among the tasks is done already.
            for task in [t for t in waiting if t.needs not in pending]:
                if task.needs in ended and ended[task.needs].code != 0:
                    waiting.remove(task)
                    pending.discard(task.id)
                    ended[task.id] = Outcome(ended[task.needs].code, "its pretraining failed")
                    on_event("skip", task, active, ended[task.id].text)
                elif len(active) == workers:
                    break
                elif task.state(folder).status == "done":  # by somebody else meanwhile
                    waiting.remove(task)
                    pending.discard(task.id)
                    ended[task.id] = Outcome(0, "")
                    on_event("skip", task, active, "already done")
                else:
                    waiting.remove(task)
                    slot = min(set(range(workers)) - {r.slot for r in active})
                    active.append(start(task, slot))
                    on_event("start", task, active, "")
            for running in list(active):
                code = running.poll()
                if code is not None:
                    active.remove(running)
                    pending.discard(running.task.id)
                    ended[running.task.id] = Outcome(code, running.ending())
                    failures += code != 0
                    on_event("end", running.task, active, running.ending())
            on_event("tick", None, active, "")
            time.sleep(0.1)
        if caught:
            raise Stopped(caught[0])
        return ended
    finally:
        for running in active:
            running.tell()
        deadline = time.monotonic() + SAVE_SECONDS
        for running in active:
            running.stop(max(0.0, deadline - time.monotonic()))
        for number, handler in previous.items():
            signal.signal(number, handler)
