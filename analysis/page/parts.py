"""What the pages' templates show of a figure and of a table of the report."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

from ratplus.analysis.draw.tables import Table, plain_text


def figure_of(path: Path, titles: dict[str, str]) -> dict:
    """What the template shows of a PNG file."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's header
    title = titles.get(path.stem, path.stem.replace("_", " "))
    # At 200 dpi; CSS pixels are 96 an inch, and a figure is shown somewhat larger than in print.
    return {
        "title": title, "file": path.name, "data": base64.b64encode(data).decode(), "wide": width > 1000,
        "width": round(width * 0.62), "height": round(height * 0.62),
        "alt": f"Figure: {title}. Its numbers stand in the tables below.",
    }  # fmt: skip


def table_of(table: Table, titles: dict[str, str]) -> dict:
    """What the template shows of a table."""
    numbers = [place >= table.names for place in range(table.shown.shape[1])]
    return {
        "title": titles.get(table.name, table.name.replace("_", " ")),
        "file": table.name,
        "caption": plain_text(table.caption)[0],
        "columns": [(plain_text(name)[0], is_number) for name, is_number in zip(table.shown.columns, numbers)],
        "rows": [[(*plain_text(cell), is_number) for cell, is_number in zip(row, numbers)] for row in table.rows],
        "notes": [plain_text(note)[0] for note in table.notes],
    }
