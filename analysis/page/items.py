"""Outcomes of single items, embedded so that the browser can take the error of a difference between any two cells.

Two evaluations of the same items share most of their noise, and only the items tell how much. They are embedded as long
as all of them together stay small; without them a difference has the error of two unrelated evaluations, named so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.frame.tasks import recorded
from ratplus.analysis.page.embed import packed
from ratplus.analysis.paired.samples import Items, read_items
from ratplus.records.samples import SAMPLES_FILE

# Bytes of base64 that the items may take in a page, and of files of samples that are read for them.
MOST_BYTES, MOST_READ = 4 << 20, 64 << 20


def items_of(sweep: Sweep, cells: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """{"of": {result: groups}, "left_out": results whose items would have been too many}.

    A group is {rows, count, values, weights} of cells that were asked the same `count` items: `values` is an array
    [rows, count] of `embed.packed`, `weights` one of [count], left out where all items count the same. A cell without
    items, or the only one of its group, is in none.

    Args:
        sweep: where the cells are from.
        cells: its frame in the order of the table.
        names: results, those first that should rather have a place.
    """
    folders = [sweep.folder / "evaluate" / cell for cell in cells["cell"]]
    sizes = {row: _size(folders[row]) for row, done in enumerate(cells["status"].eq("done")) if done}
    there = [row for row, size in sizes.items() if size > 0]
    if sum(sizes.values()) > MOST_READ:
        return {"of": {}, "left_out": list(names)}
    groups: dict[str, dict[tuple, list[tuple[int, Items]]]] = {name: {} for name in names}
    as_stored = [(name, recorded(name)) for name in names]
    for row in there:
        try:
            found = read_items(folders[row])
        except ValueError:  # a damaged file of samples: the cell's results are none the worse
            continue
        for name, stored in as_stored:
            items = found.get(stored)
            if items is not None and items.whole and len(items.ids) > 1:
                groups[name].setdefault((items.of, items.ids.tobytes(), items.weights.tobytes()), []).append(
                    (row, items)
                )
    kept: dict[str, list] = {}
    left_out, spent = [], 0
    for name, of_name in groups.items():
        several = [_group(members) for members in of_name.values() if len(members) > 1]
        cost = sum(len(group["values"]["data"]) + len(group.get("weights", {}).get("data", "")) for group in several)
        if spent + cost > MOST_BYTES:
            left_out.append(name)
        elif several:
            kept[name], spent = several, spent + cost
    return {"of": kept, "left_out": left_out}


def _group(members: list[tuple[int, Items]]) -> dict[str, Any]:
    weights = members[0][1].weights
    group: dict[str, Any] = {
        "rows": [row for row, _ in members],
        "count": len(weights),
        "values": packed(np.stack([items.values for _, items in members])),
    }
    if not (weights == weights[0]).all():
        group["weights"] = packed(weights)
    return group


def _size(folder: Path) -> int:
    try:
        return (folder / SAMPLES_FILE).stat().st_size
    except OSError:
        return 0
