"""What an analysis module has to show, and how it becomes files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ratplus.analysis.draw import style
from ratplus.analysis.draw.latex import to_latex
from ratplus.analysis.draw.tables import Table, to_csv, to_markdown
from ratplus.records.atomic import write_atomically

SUFFIXES = (".md", ".tex", ".csv", ".png", ".pdf")


@dataclass(frozen=True)
class Picture:
    """A figure and the stem of its files."""

    name: str
    figure: Figure


def write(parts: Sequence[Table | Picture], folder: Path) -> list[Path]:
    """Write tables (Markdown, LaTeX, CSV) and pictures (PNG, PDF) into `folder`, each file whole or not at all.

    A file that an earlier call left under one of these names, and that is not written now, is removed: when a sweep has
    lost its results, an old figure would stand beside the new table.

    Returns:
        The paths, in the order of `parts`.
    """
    folder = Path(folder)
    written: list[Path] = []
    for part in parts:
        if isinstance(part, Picture):
            written += style.save(part.figure, folder / part.name)
        else:
            written += write_table(part, folder)
    remove_others((part.name for part in parts), folder, written)
    return written


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write `<name>.md`, `<name>.tex` and, if there are data, `<name>.csv` into `folder`; returns the paths."""
    texts = {".md": to_markdown(table), ".tex": to_latex(table)}
    if table.data is not None:
        texts[".csv"] = to_csv(table.data)
    paths = []
    for suffix, text in texts.items():
        paths.append(Path(folder) / (table.name + suffix))
        write_atomically(paths[-1], text)
    return paths


def remove_others(names, folder: Path, written: Sequence[Path]) -> None:
    """Remove the files of these names that are not among the written ones."""
    for name in names:
        for suffix in SUFFIXES:
            path = Path(folder) / (name + suffix)
            if path not in written:
                path.unlink(missing_ok=True)
