"""`ratplus status` on a screen or in a log: the grid pattern × model, what failed and why, and how long it may take."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from io import StringIO
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ratplus.sweeps.launch.cell import EXIT_FAILED
from ratplus.sweeps.launch.console import PipeConsole
from ratplus.sweeps.views.sweep_view import CELL_STATUSES, SweepView, summary

_MARKS = {"failed": "FAILED", "damaged": "DAMAGED", "missing": "–"}
_COLOURS = {
    "done": "green", "running": "yellow", "queued": "cyan", "failed": "red", "damaged": "red", "missing": "dim",
}  # fmt: skip
# Of a larger sweep, only counts and errors are printed; --json has all of it.
_MOST_ROWS = 60
_MOST_COLUMNS = 8
_MOST_ERRORS = 10
_MOST_NOTES = 10
_PLAIN_WIDTH = 160


def print_status(view: SweepView) -> None:
    console = PipeConsole(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    for part in _parts(view):
        console.print(part, soft_wrap=isinstance(part, Text))


def print_json(view: SweepView) -> None:
    print(json.dumps(view.to_json(), indent=1))


def exit_code(view: SweepView) -> int:
    return EXIT_FAILED if view.bad else 0


def watch(folder: Path, seconds: float) -> int:
    """Show the status again and again until every cell is done or has failed; returns the exit code for the last one.

    A terminal shows it in place; elsewhere it is printed again when it has changed.
    """
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(console=PipeConsole(), auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                view = SweepView(folder)
                live.update(Group(*_parts(view)), refresh=True)
                if view.settled:
                    return exit_code(view)
                time.sleep(seconds)
    before = None
    while True:
        view = SweepView(folder)
        text = StringIO()
        console = PipeConsole(file=text, highlight=False, width=_PLAIN_WIDTH)
        for part in _parts(view):
            console.print(part, soft_wrap=isinstance(part, Text))
        if text.getvalue() != before:
            before = text.getvalue()
            print(f"{time.strftime('%H:%M:%S')}\n{before}", flush=True)
        if view.settled:
            return exit_code(view)
        time.sleep(seconds)


def _parts(view: SweepView) -> list[Table | Text]:
    """Make the tables and lines of a status, in order."""
    columns = list(dict.fromkeys(_column(cell) for cell in view.cells))
    rows = list(dict.fromkeys(cell["label"] for cell in view.cells))
    # The folder is a line of its own: as the table's title it would be wrapped to the table's width.
    parts: list[Table | Text] = [Text(str(view.folder))]
    if len(columns) > _MOST_COLUMNS or len(rows) > _MOST_ROWS:
        parts.append(_counts_table(view, columns))
    else:
        parts.append(_grid(view, columns, rows))
    bad = [cell for cell in view.cells if cell["error"]]
    for cell in bad[:_MOST_ERRORS]:
        again = f", attempt {cell['attempt']}" if (cell["attempt"] or 1) > 1 else ""
        parts.append(Text(f"{_column(cell)} {cell['label']} ({cell['stage']}{again}): {cell['error']}"))
    if len(bad) > _MOST_ERRORS:
        parts.append(Text(f"... and {len(bad) - _MOST_ERRORS} more; --json lists all"))
    for suite in dict.fromkeys(one["suite"] for one in view.added):
        own = [one for one in view.added if one["suite"] == suite]
        parts.append(Text(f"added {suite}: {summary(one['status'] for one in own)}"))
        errors = [one for one in own if one["error"]]
        parts += [Text(f"  {one['id']}: {one['error']}") for one in errors[:_MOST_ERRORS]]
    noted = [cell for cell in view.cells if cell["note"]]
    parts += [Text(f"{_column(cell)} {cell['label']}, note: {cell['note']}") for cell in noted[:_MOST_NOTES]]
    if len(noted) > _MOST_NOTES:
        parts.append(Text(f"... and {len(noted) - _MOST_NOTES} more notes; --json lists all"))
    parts += [Text(note) for note in view.notes]
    parts.append(Text(summary(cell["status"] for cell in view.cells) + _time_left(view)))
    return parts


def _grid(view: SweepView, columns: list[str], rows: list[str]) -> Table:
    table = _table("pattern", columns)
    grid = {(cell["label"], _column(cell)): cell for cell in view.cells}
    for row in rows:
        cells = [grid.get((row, column)) for column in columns]
        table.add_row(escape(row), *(_mark(cell) if cell else "" for cell in cells))
    return table


def _counts_table(view: SweepView, columns: list[str]) -> Table:
    """Make one row for each column of the grid or, if those are too many, for each model."""
    name = _column if len(columns) <= _MOST_ROWS else lambda cell: cell["model"]
    counts: dict[str, Counter] = {}
    for cell in view.cells:
        counts.setdefault(name(cell), Counter())[cell["status"]] += 1
    shown = [status for status in CELL_STATUSES if any(count[status] for count in counts.values())]
    table = _table("cells of", shown)
    for row, count in counts.items():
        table.add_row(escape(row), *(f"[{_COLOURS[s]}]{count[s]}[/]" if count[s] else "" for s in shown))
    return table


def _table(first: str, columns: list[str]) -> Table:
    table = Table()
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(escape(column))
    return table


def _mark(cell: dict) -> str:
    text = _MARKS.get(cell["status"], cell["status"])
    if cell["status"] == "running" and cell["stage"]:
        progress = cell["progress"]
        steps = f" {progress['done']}/{progress['total']}" if progress else ""
        text += f" ({cell['stage']}{steps})"
    return f"[{_COLOURS[cell['status']]}]{text}[/]"


def _column(cell: dict) -> str:
    parts = [cell["model"], f"seed={cell['seed']}"] if cell["seed"] else [cell["model"]]
    return " ".join([*parts, *(f"{k}={v}" for k, v in cell["axes"].items())])


def _time_left(view: SweepView) -> str:
    if view.eta_seconds is None:
        return ""
    seconds = view.eta_seconds
    unit, name = (3600, "h") if seconds > 7200 else (60, "min") if seconds > 120 else (1, "s")
    text = f"{seconds / unit:.0f} {name}"
    return f"; about {text} left, {view.running_stages} at once as now"
