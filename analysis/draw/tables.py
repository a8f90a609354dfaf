"""A table and its text as Markdown and CSV.

A table has two faces: `data`, the frame of plain values that goes to CSV, and `shown`, a frame of strings already
rounded for a reader, that goes to Markdown, LaTeX and the page. In `shown`, a cell written `**so**` is bold everywhere,
and rows may be grouped by their first column: its repeated values are then left blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

# A bracket is special where it would make an image or a link: the former is loaded from wherever it points to.
_SPECIAL = re.compile(r"[\\|*<>`]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BOLD = re.compile(r"\*\*(.+)\*\*")


@dataclass(frozen=True)
class Table:
    """A table for readers and, as CSV, for programs.

    Attributes:
        name: the stem of its files; `tab:<name>` is its label in LaTeX.
        data: plain values, for the CSV file; None where the file of the table that this one continues has them.
        shown: strings, for Markdown, LaTeX and the page.
        caption: one paragraph of plain text.
        notes: lines below the table, such as cells without a result.
        names: how many leading columns hold names (left-aligned); the columns after them hold numbers (right-aligned).
        grouped: whether rows with the same first cell form a group.
    """

    name: str
    data: pd.DataFrame | None
    shown: pd.DataFrame
    caption: str = ""
    notes: Sequence[str] = ()
    names: int = 1
    grouped: bool = False

    @property
    def rows(self) -> list[list[str]]:
        """The cells of `shown`; the first cell of a row is empty where it repeats that of the row above in a group."""
        rows = [[str(cell) for cell in row] for row in self.shown.itertuples(index=False, name=None)]
        firsts = [row[0] for row in rows]
        if self.grouped:
            for row, first, above in zip(rows[1:], firsts[1:], firsts):
                row[0] = "" if first == above else first
        return rows


def plain_text(cell: str) -> tuple[str, bool]:
    """The text of a cell on one line, without the asterisks that make it bold; and whether it is bold."""
    text = " ".join(str(cell).split())
    bold = _BOLD.fullmatch(text)
    return (bold[1], True) if bold else (text, False)


def to_csv(data: pd.DataFrame) -> str:
    """Comma-separated values, one header line; null is empty, infinite is `inf`, numbers keep all their digits.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    data = data.rename(columns=_no_formula)
    for place, kind in enumerate(data.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            data.isetitem(place, data.iloc[:, place].map(_no_formula))
    return data.to_csv(index=False, lineterminator="\n")


def _no_formula(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def to_markdown(table: Table) -> str:
    """A pipe table (GitHub) of `shown`, with the caption above and the notes as a list below.

    Columns line up in the text as well, so that it reads in a terminal too.
    """
    lines = [[_escaped(cell) for cell in row] for row in (table.shown.columns, *table.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(table.shown.shape[1])]
    rule: list[str] = ["-" * width if i < table.names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, rule)
    aligned = ["<" if i < table.names else ">" for i in range(len(widths))]
    texts = [
        "| " + " | ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, aligned, widths)) + " |"
        for line in lines
    ]
    parts = [_escaped(table.caption)] if table.caption else []
    parts.append("\n".join(texts))
    if table.notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in table.notes))
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


def _escaped(cell: str) -> str:
    """One line of Markdown that shows the text literally, but for `**bold**` around all of it."""
    text, bold = plain_text(cell)
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], text)
    return f"**{escaped}**" if bold else escaped
