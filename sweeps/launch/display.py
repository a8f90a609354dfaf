"""What a running sweep shows: bars with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ratplus.sweeps.launch.pool import Running
from ratplus.sweeps.launch.tasks import Task

_LINE_SECONDS = 20.0  # between two plain progress lines


def progress_bars(console: Console, transient: bool = False) -> Progress:
    """Bars with a description (plain text: a label may hold brackets), ETA and a `note`."""
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False), console=console, transient=transient,
    )  # fmt: skip


class SweepDisplay:
    """Use as a context manager; `event` is what the pool calls."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self.started = time.monotonic()
        self._told = self.started
        self._live = sys.stderr.isatty()
        self._bars: dict[int, int] = {}
        self.console = Console(stderr=True, highlight=False, soft_wrap=not self._live)

    def __enter__(self) -> SweepDisplay:
        if self._live:
            self._progress = progress_bars(self.console, transient=True)
            self._overall = self._progress.add_task("sweep", total=self.total, note="")
            self._progress.start()
        return self

    def __exit__(self, *_exc) -> None:
        if self._live:
            self._progress.stop()

    def event(self, kind: str, task: Task | None, workers: list[Running], text: str) -> None:
        if kind in ("end", "skip"):
            self.done += 1
            mark = "FAILED" if kind == "end" and text else "skipped" if kind == "skip" else "done"
            self._say(f"[{self.done}/{self.total}] {task.name}: {mark}{': ' + text if text else ''}")
        elif kind == "start" and not self._live:
            self._say(f"[{self.done}/{self.total}] {task.name}: started")
        if self._live:
            self._draw(workers)
        elif kind == "tick" and time.monotonic() - self._told > _LINE_SECONDS and workers:
            self._say("; ".join(self._line(worker) for worker in workers) + self._eta())

    def _say(self, line: str) -> None:
        self._told = time.monotonic()
        self.console.print(line, markup=False)

    def _line(self, worker: Running) -> str:
        news = worker.news()
        if not news:
            return f"{worker.task.name}: starting"
        loss = f", loss {news['loss']:.3f}" if "loss" in news else ""
        return f"{worker.task.name}: {news['stage']} {news['done']}/{news['total']}{loss}"

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
            news = worker.news()
            if worker.slot not in self._bars:
                self._bars[worker.slot] = self._progress.add_task("", total=None, note="")
            note = f"loss {news['loss']:.3f}" if "loss" in news else ""
            description = f"{worker.task.name}: {news.get('stage', 'starting')}"
            bar = self._bars[worker.slot]
            if self._progress.tasks[self._progress.task_ids.index(bar)].description != description:
                self._progress.reset(bar)
            self._progress.update(
                bar, description=description, completed=news.get("done", 0), total=news.get("total"), note=note,
                visible=True,
            )  # fmt: skip
        for slot, bar in self._bars.items():
            if slot not in seen:
                self._progress.update(bar, visible=False)
