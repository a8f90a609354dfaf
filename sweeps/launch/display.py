"""What is shown of a running sweep: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ratplus.sweeps.launch.console import PipeConsole
from ratplus.sweeps.launch.pool import Running
from ratplus.sweeps.launch.work import WorkItem

_LINE_SECONDS = 20.0  # at least so many lie between two plain progress lines


def progress_bars(console: Console, transient: bool = False) -> Progress:
    """Make bars with a description, the time left and a `note`.

    The description is plain text rather than rich's markup, since a pattern's label may hold brackets.
    """
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False), console=console, transient=transient,
    )  # fmt: skip


class SweepDisplay:
    """Shows how far a sweep is, while it is used as a context manager; the pool calls `event`."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self.started = time.monotonic()
        self._printed_at = self.started
        self._live = sys.stderr.isatty()
        self._bars: dict[int, TaskID] = {}
        self.console = PipeConsole(stderr=True, highlight=False, soft_wrap=not self._live)

    def __enter__(self) -> SweepDisplay:
        if self._live:
            self._progress = progress_bars(self.console, transient=True)
            self._overall = self._progress.add_task("sweep", total=self.total, note="")
            self._progress.start()
        return self

    def __exit__(self, *_exc) -> None:
        if self._live:
            self._progress.stop()

    def event(self, kind: str, item: WorkItem | None, workers: list[Running], text: str) -> None:
        name = item.name if item is not None else ""
        if kind in ("end", "skip"):
            self.done += 1
            mark = "FAILED" if kind == "end" and text else "skipped" if kind == "skip" else "done"
            self._print(f"[{self.done}/{self.total}] {name}: {mark}{': ' + text if text else ''}")
        elif kind == "start" and not self._live:
            self._print(f"[{self.done}/{self.total}] {name}: started")
        if self._live:
            self._draw(workers)
        elif kind == "tick" and time.monotonic() - self._printed_at > _LINE_SECONDS and workers:
            self._print("; ".join(self._line(worker) for worker in workers) + self._eta())

    def _print(self, line: str) -> None:
        self._printed_at = time.monotonic()
        self.console.print(line, markup=False)

    def _line(self, worker: Running) -> str:
        progress = worker.progress()
        if not progress:
            return f"{worker.item.name}: starting"
        loss = f", loss {progress['loss']:.3f}" if "loss" in progress else ""
        return f"{worker.item.name}: {progress['stage']} {progress['done']}/{progress['total']}{loss}"

    def _eta(self) -> str:
        elapsed = time.monotonic() - self.started
        if not self.done:
            return f" ({elapsed:.0f} s)"
        return f" ({elapsed:.0f} s, about {elapsed / self.done * (self.total - self.done):.0f} s left)"

    def _draw(self, workers: list[Running]) -> None:
        self._progress.update(self._overall, completed=self.done)
        seen = set()
        for worker in workers:
            seen.add(worker.slot)
            progress = worker.progress()
            if worker.slot not in self._bars:
                self._bars[worker.slot] = self._progress.add_task("", total=None, note="")
            note = f"loss {progress['loss']:.3f}" if "loss" in progress else ""
            description = f"{worker.item.name}: {progress.get('stage', 'starting')}"
            bar = self._bars[worker.slot]
            if self._progress.tasks[self._progress.task_ids.index(bar)].description != description:
                self._progress.reset(bar)
            self._progress.update(
                bar, description=description, completed=progress.get("done", 0), total=progress.get("total"), note=note,
                visible=True,
            )  # fmt: skip
        for slot, bar in self._bars.items():
            if slot not in seen:
                self._progress.update(bar, visible=False)
