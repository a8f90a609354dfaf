"""A pool of running items, at most so many at once: each pretraining once, and then the cells that need it.

Cells may share later stages as well: one fine-tuning serves many patterns. A cell whose stage is being trained by
another could only wait, so cells that have something to do go first.

The pool knows nothing of processes or clusters: a launcher hands it `start`. Nothing here decides results.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ratplus.records.record import TRAINING
from ratplus.records.status import stage_state
from ratplus.sweeps.launch.child import SAVE_SECONDS
from ratplus.sweeps.launch.work import WorkItem


class Running(Protocol):
    """An item at work."""

    item: WorkItem
    slot: int

    def poll(self) -> int | None:
        """Exit code, or None while it runs; the first code ends it."""

    def ending(self) -> str:
        """How it ended: empty if well, else one line."""

    def progress(self) -> dict:
        """How far it is: stage, done, total; empty before its first step."""

    def request_stop(self) -> None:
        """Ask it to save and stop; returns at once."""

    def stop(self, seconds: float) -> None:
        """Wait so long for that, then end it."""


@dataclass
class Outcome:
    """How an item ended: its exit code, and the reason if that is not 0."""

    code: int
    text: str


class Stopped(Exception):
    """A signal asked the sweep to stop; workers saved their state."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to continue")
        self.number = number


def run_pool(
    items: list[WorkItem],
    folder: Path,
    workers: int,
    start: Callable[[WorkItem, int], Running],
    on_event: Callable[[str, WorkItem | None, list[Running], str], None],
    max_failures: int | None = None,
) -> dict[str, Outcome]:
    """Run items, at most `workers` at once; returns how each ended by its id.

    After `max_failures` failures no more are started; those that were not have no outcome.

    Args:
        start: (item, slot) -> Running; slots are 0 ... workers - 1.
        on_event: called with (kind, item, running ones, text); kind is "start", "end", "skip" or "tick" (several a
            second).

    Raises:
        Stopped: on SIGTERM or Ctrl-C, once the workers have been asked to stop and have ended.
    """
    waiting, active, ended = list(items), [], {}
    pending = {item.id for item in items}
    failures = 0
    caught: list[int] = []
    previous = {n: signal.signal(n, lambda number, _f: caught.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while (waiting or active) and not caught:
            if max_failures is not None and failures >= max_failures:
                waiting.clear()
            # A pretraining that is not among the items is done already.
            for item in [item for item in waiting if item.needs in ended and ended[item.needs].code != 0]:
                waiting.remove(item)
                pending.discard(item.id)
                ended[item.id] = Outcome(ended[item.needs].code, "its pretraining failed")
                on_event("skip", item, active, ended[item.id].text)
            while len(active) < workers and (ready := [item for item in waiting if item.needs not in pending]):
                item = _next(ready, active, folder)
                waiting.remove(item)
                if item.state(folder).status == "done":  # another process has done it in the meantime
                    pending.discard(item.id)
                    ended[item.id] = Outcome(0, "")
                    on_event("skip", item, active, "already done")
                else:
                    slot = min(set(range(workers)) - {r.slot for r in active})
                    active.append(start(item, slot))
                    on_event("start", item, active, "")
            for running in list(active):
                code = running.poll()
                if code is not None:
                    active.remove(running)
                    pending.discard(running.item.id)
                    ended[running.item.id] = Outcome(code, running.ending())
                    failures += code != 0
                    on_event("end", running.item, active, running.ending())
            on_event("tick", None, active, "")
            time.sleep(0.1)
        if caught:
            raise Stopped(caught[0])
        return ended
    finally:
        for running in active:
            running.request_stop()
        deadline = time.monotonic() + SAVE_SECONDS
        for running in active:
            running.stop(max(0.0, deadline - time.monotonic()))
        for number, handler in previous.items():
            signal.signal(number, handler)


def _next(ready: list[WorkItem], active: list[Running], folder: Path) -> WorkItem:
    """The first ready item that would not wait for a stage that an active one trains; the first of all if all would.

    Pretrainings are no matter here: they are items of their own, and a cell is ready when its own is done.
    """
    trained = {
        stage: id
        for running in active
        for stage, id in running.item.entry["stages"].items()
        if stage in TRAINING[1:] and stage_state(folder / stage / id).status != "done"
    }
    return next((item for item in ready if trained.items().isdisjoint(item.entry["stages"].items())), ready[0])
