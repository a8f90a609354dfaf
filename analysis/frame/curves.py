"""Learning curves of a sweep's stages, read once for the table, the figure and the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ratplus.analysis.frame.kept import Kept, stamp_of
from ratplus.records.curve import CURVE_FILE, curve_columns

# Bytes of curves that are kept; what a column takes besides its numbers.
MOST_KEPT, _BYTES_OF_ONE = 64 << 20, 200


def curve_of(stage: Path | str, most: int, on_thinned: Callable[[str], None] | None = None) -> Mapping[str, np.ndarray]:
    """`curve_columns` of a stage's folder as arrays.

    One that is thinned is not kept: whoever asks for more or fewer rows gets others.
    """
    path = os.path.join(stage, CURVE_FILE)
    stamp = stamp_of(path)
    if not stamp:
        return {}
    whole = _kept.get(path, stamp)
    if whole is None or _rows(whole) > most:
        thinned: list[str] = []
        whole = {name: np.array(column) for name, column in curve_columns(path, most, thinned.append).items()}
        for line in thinned:
            if on_thinned is not None:
                on_thinned(line)
        if not thinned:
            _kept.add(path, stamp, whole)
    return whole


def _rows(curve: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(curve.values()), ()))


def _bytes_of(curve: Mapping[str, np.ndarray]) -> int:
    return sum(column.nbytes + _BYTES_OF_ONE for column in curve.values())


_kept: Kept[dict[str, np.ndarray]] = Kept(MOST_KEPT, _bytes_of)
