"""What a preparation shows while it runs: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_LINE_SECONDS = 20.0  # between two lines where nobody watches
_DRAW_SECONDS = 0.5


class Progress:
    """Adds up what the inputs report and says tokens a second and the time left."""

    def __init__(self, input_bytes: int, done_bytes: int, out=None):
        self.total, self.skipped = input_bytes, done_bytes
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self._of_input: dict[int, tuple[int, int]] = {}
        self._started = self._told = time.monotonic()

    def report(self, index: int, done_bytes: int, tokens: int) -> None:
        """Input `index` has been read so far, and has given so many tokens."""
        self._of_input[index] = done_bytes, tokens
        now = time.monotonic()
        if now - self._told >= (_DRAW_SECONDS if self.live else _LINE_SECONDS):
            self._told = now
            print(f"\r{self.line()}\x1b[K" if self.live else self.line(), end="" if self.live else "\n",
                  file=self.out, flush=True)  # fmt: skip

    def close(self) -> None:
        if self.live and self._of_input:
            print("\r\x1b[K", end="", file=self.out, flush=True)

    @property
    def tokens(self) -> int:
        """Tokens made since the start."""
        return sum(tokens for _, tokens in self._of_input.values())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def line(self) -> str:
        read, seconds = sum(done for done, _ in self._of_input.values()), self.seconds
        left = (self.total - self.skipped - read) * seconds / read if read else float("nan")
        share = (self.skipped + read) / max(self.total, 1)
        return (
            f"tokenizing: {share:.1%} of {self.total / 1e6:,.1f} MB, {self.tokens / 1e6:,.1f} M tokens, "
            f"{self.tokens / max(seconds, 1e-9):,.0f} tokens/s, {_time(left)} left"
        )


def _time(seconds: float) -> str:
    if seconds != seconds:
        return "unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
