"""`selection.json`, which an evaluation leaves beside its record where a pattern selects by query: hits and masks."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ratplus.records.reading import read_json

SELECTION_FILE = "selection.json"
FORMAT = 1


def selections_of(frame: pd.DataFrame) -> dict[str, dict]:
    """{cell id: its selection.json} of the finished cells that have one; a damaged or foreign one is left out, told."""
    found = {}
    for cell in frame.loc[frame["status"].eq("done"), "cell"]:
        path = Path(frame.attrs["folder"]) / "evaluate" / cell / SELECTION_FILE
        try:
            plain = read_json(path, follow=False)
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']!r}")
            for rates in plain["hit_rate"].values():
                np.asarray(rates, dtype=np.float64).reshape(len(rates), -1)
            for mask in plain["masks"].values():
                mask_of(mask)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logging.getLogger(__name__).warning("selection: %s is left out (%s)", path, error)
            continue
        found[cell] = plain
    return found


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
