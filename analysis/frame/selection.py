"""`selection.json`, which an evaluation leaves beside its record where a pattern selects by query: hits and masks."""

from __future__ import annotations

import base64

import numpy as np
import pandas as pd

from ratplus.analysis.frame.beside import read_beside

SELECTION_FILE = "selection.json"
FORMAT = 1


def selections_of(frame: pd.DataFrame) -> dict[str, dict]:
    """{cell id: its selection.json} of the finished cells that have one; a damaged or foreign one is left out, told."""
    return read_beside(frame, SELECTION_FILE, FORMAT, _check)


def _check(plain: dict) -> None:
    for rates in plain["hit_rate"].values():
        np.asarray(rates, dtype=np.float64).reshape(len(rates), -1)
    for mask in plain["masks"].values():
        mask_of(mask)


def mask_of(stored: dict) -> np.ndarray:
    """bool [length, length] of an entry of `masks`: what a head saw, queries downwards.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    length = stored["length"]
    if not isinstance(length, int) or not 1 <= length <= 4096:
        raise ValueError(f"a mask of length {length!r}")
    bits = np.frombuffer(base64.b64decode(stored["bits"], validate=True), dtype=np.uint8)
    if len(bits) != -(-length * length // 8):
        raise ValueError(f"a mask of {length} positions has {len(bits)} bytes")
    return np.unpackbits(bits, count=length * length).reshape(length, length).astype(bool)
