"""What stands and what is missing in a sweep folder, from its manifest and records alone."""

from __future__ import annotations

from pathlib import Path

from ratplus.status import cell_state
from ratplus.sweeps.manifest import read_manifest

MARKS = {"done": "done", "running": "running", "failed": "FAILED", "missing": "–", "damaged": "DAMAGED"}


def sweep_status(folder: Path) -> list[dict]:
    """One entry a cell of the sweep: model, label, seed, axes, status, stage, error."""
    cells = []
    for cell in read_manifest(folder)["cells"]:
        state = cell_state(folder, cell["stages"])
        known = {k: cell[k] for k in ("id", "model", "label", "seed", "axes")}
        cells.append(known | {"status": state.status, "stage": state.stage, "error": state.error})
    return cells


def print_status(folder: Path, cells: list[dict]) -> None:
    """The grid pattern × model (and seed, and other axes), then the failures' last lines and the counts."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(_column(cell) for cell in cells))
    rows = list(dict.fromkeys(cell["label"] for cell in cells))
    grid = {(cell["label"], _column(cell)): cell for cell in cells}
    table = Table(title=str(folder), title_justify="left")
    table.add_column("pattern", no_wrap=True)
    for column in columns:
        table.add_column(column)
    colours = {"done": "green", "running": "yellow", "failed": "red", "damaged": "red", "missing": "dim"}
    for row in rows:
        line = [row]
        for column in columns:
            cell = grid.get((row, column))
            status = cell["status"] if cell else ""
            text = MARKS.get(status, "")
            if status == "running":
                text += f" ({cell['stage']})"
            line.append(f"[{colours[status]}]{text}[/]" if status else "")
        table.add_row(*line)
    console = Console(highlight=False)
    console.print(table)
    for cell in cells:
        if cell["error"]:
            console.print(f"{_column(cell)} {cell['label']} ({cell['stage']}): {cell['error']}", markup=False)
    console.print(summary(cells))


def summary(cells: list[dict]) -> str:
    """`20 done, 2 failed, 1 missing`."""
    counts = {status: sum(cell["status"] == status for cell in cells) for status in MARKS}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no cells"


def _column(cell: dict) -> str:
    parts = [cell["model"], f"seed={cell['seed']}"] if cell["seed"] else [cell["model"]]
    return " ".join([*parts, *(f"{k}={v}" for k, v in cell["axes"].items())])
