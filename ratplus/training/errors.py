"""What training raises beside damaged files, and an exception as data that travels between ranks; torch-free."""

from __future__ import annotations

import signal
import traceback


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the training state was saved first."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}; run the same command again to continue")
        self.number = number


class LayoutError(ValueError):
    """What `trainer` asks for is not there (ranks, a compiler), or ranks cannot share the work; one line."""


class Diverged(RuntimeError):
    """Losses or gradient norms are not finite any more; one line with the step, and what to try."""


class PeerFailed(RuntimeError):
    """Another rank failed or vanished. `failure` has the "type", "message" and "traceback" of the first that did."""

    def __init__(self, failure: dict):
        super().__init__(failure["message"])
        self.failure = failure


def words_of(error: Exception) -> dict:
    """An exception as JSON-ready data: {"type", "message", "traceback" (its lines)}."""
    return {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exception(error)}
