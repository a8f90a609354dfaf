"""DataFrames to Markdown, LaTeX and CSV files.

A table has two faces: `data`, the frame of plain values that goes to CSV, and `shown`, a frame of strings already
rounded for a reader, that goes to Markdown and LaTeX. In `shown`, a cell written `**so**` is bold in both, and rows
may be grouped by their first column: its repeated values are then left blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ratplus.analysis.draw.latex import to_latex
from ratplus.records.atomic import write_atomically

_SPECIAL = re.compile(r"[\\|*<>`]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BOLD = re.compile(r"\*\*(.+)\*\*")


def write_table(
    stem: Path,
    data: pd.DataFrame,
    shown: pd.DataFrame,
    *,
    caption: str,
    notes: Sequence[str] = (),
    names: int = 1,
    grouped: bool = False,
) -> list[Path]:
    """Write `<stem>.md`, `<stem>.tex` and `<stem>.csv`, each whole or not at all; returns the three paths.

    Args:
        stem: path without suffix; its name becomes the LaTeX label `tab:<name>`.
        data: for the CSV file.
        shown: strings, for Markdown and LaTeX.
        caption: one paragraph of plain text.
        notes: lines under the table, such as cells without a result.
        names: how many leading columns hold names (left-aligned); numbers follow (right-aligned).
        grouped: whether rows with the same first column form a group.
    """
    stem = Path(stem)
    look = {"caption": caption, "notes": notes, "names": names, "grouped": grouped}
    texts = {
        ".md": to_markdown(shown, **look),
        ".tex": to_latex(shown, label=f"tab:{stem.name}", **look),
        ".csv": to_csv(data),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_atomically(paths[-1], text)
    return paths


def to_csv(data: pd.DataFrame) -> str:
    """Comma-separated text, one header line; null is empty, infinite is `inf`, numbers keep all their digits."""
    return data.to_csv(index=False, lineterminator="\n")


def to_markdown(
    shown: pd.DataFrame, *, caption: str = "", notes: Sequence[str] = (), names: int = 1, grouped: bool = False
) -> str:
    """A pipe table (GitHub) from a frame of strings, with the caption above and the notes as a list below.

    Columns line up in the text as well, so that it reads in a terminal too. Arguments as of `write_table`.
    """
    first = [str(cell) for cell in shown.iloc[:, 0]]
    table = [[_cell(name) for name in shown.columns]]
    for row, cells in enumerate(shown.itertuples(index=False, name=None)):
        begins = not grouped or row == 0 or first[row] != first[row - 1]
        table.append([_cell(cell) if column or begins else "" for column, cell in enumerate(cells)])
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(shown.shape[1])]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    table.insert(1, rule)
    lines = [
        "| " + " | ".join(f"{cell:<{widths[i]}}" if i < names else f"{cell:>{widths[i]}}" for i, cell in enumerate(row))
        for row in table
    ]
    parts = [_cell(caption)] if caption else []
    parts.append(" |\n".join(lines) + " |")
    if notes:
        parts.append("\n".join(f"- {_cell(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def number(value: float, digits: int, stderr: float = float("nan")) -> str:
    """A rounded number with a true minus sign, and ` ± stderr` where that is known; `—` for null, `∞` for infinite."""
    if pd.isna(value):
        return "—"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    if float(text) == 0:
        text = text.lstrip("-")
    # A spread of zero means that nothing is known about it (one item, equal seeds): do not claim exactness.
    if pd.isna(stderr) or stderr in (0, float("inf")):
        return text.replace("-", "−")
    return f"{text} ± {stderr:.{digits}f}".replace("-", "−")


def _cell(cell: str) -> str:
    """One line of Markdown that shows the text literally, but for `**bold**` around all of it."""
    text = " ".join(str(cell).split())
    bold = _BOLD.fullmatch(text)
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], bold[1] if bold else text)
    return f"**{escaped}**" if bold else escaped


def from_markdown(text: str) -> dict:
    """A table that `to_markdown` wrote, taken apart: `caption`, `heads`, `right` (aligned), `rows`, `notes`.

    A cell is (whether it is bold, its text).
    """
    parts = text.strip("\n").split("\n\n")
    place = next(i for i, part in enumerate(parts) if part.startswith("|"))
    lines = [[cell.strip() for cell in _BAR.split(line)[1:-1]] for line in parts[place].splitlines()]
    notes = [_unescaped(line.removeprefix("- ")) for part in parts[place + 1 :] for line in part.splitlines()]
    return {
        "caption": _unescaped(parts[0]) if place else "",
        "heads": [_unescaped(cell) for cell in lines[0]],
        "right": [cell.endswith(":") for cell in lines[1]],
        "rows": [[_bold_or_not(cell) for cell in line] for line in lines[2:]],
        "notes": notes,
    }


_BAR = re.compile(r"(?<!\\)\|")


def _bold_or_not(cell: str) -> tuple[bool, str]:
    bold = _BOLD.fullmatch(cell)
    return bold is not None, _unescaped(bold[1] if bold else cell)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
