"""The console that text is shown on."""

from __future__ import annotations

from rich.console import Console


class PipeConsole(Console):
    """Rich's console, without its exit code 1 ("a cell failed", to us) where a reader like `head` has left."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
