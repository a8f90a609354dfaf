"""How far a pattern search is: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

_LINE_SECONDS = 20.0  # at least so many lie between two plain lines of one phase


class SearchProgress:
    """Shows phases and passes while it is used as a context manager.

    Args:
        plan: {phase: passes} at most (`ratplus.search.effort.planned`).
    """

    def __init__(self, plan: dict[str, float]):
        self.plan = plan
        self.total = sum(plan.values())
        self.done = 0.0
        self.name = ""
        self.started = time.monotonic()
        self._printed_at = 0.0
        self._live = sys.stderr.isatty()

    def __enter__(self) -> SearchProgress:
        if self._live:
            from rich.console import Console

            from ratplus.sweeps.launch.display import progress_bars

            self._bars = progress_bars(Console(stderr=True), transient=True)
            self._bar = self._bars.add_task("search", total=round(self.total), note="")
            self._bars.start()
        return self

    def __exit__(self, *_exc) -> None:
        if self._live:
            self._bars.stop()

    def phase(self, name: str) -> None:
        self.name, self._printed_at = name, 0.0
        self._show()

    def advance(self, done: float) -> None:
        """Told after each pass how many have been run."""
        self.done = done
        self._show()

    def _show(self) -> None:
        if self._live:
            self._bars.update(self._bar, description=self.name, completed=round(self.done))
            return
        now = time.monotonic()
        if now - self._printed_at > _LINE_SECONDS:
            self._printed_at = now
            left = ""
            if self.done:
                seconds = (now - self.started) / self.done * max(self.total - self.done, 0)
                left = f", at most {seconds:.0f} s left"
            print(f"search: {self.name}, {self.done:.0f} of at most {self.total:.0f} passes{left}", file=sys.stderr)
