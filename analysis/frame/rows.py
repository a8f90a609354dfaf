"""Rows and groups of a frame, typed so that fields can be named: pandas says no more than `tuple` and `Hashable`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def rows_of(frame: pd.DataFrame) -> Iterable[Any]:
    """The rows as named tuples, a field a column; `Index` is the first."""
    return frame.itertuples()


def groups_of(frame: pd.DataFrame, by: str | list[str], dropna: bool = True) -> Iterable[tuple[Any, pd.DataFrame]]:
    """(key, rows) of each group, in the order in which the keys appear; the key of a list of columns is a tuple.

    Args:
        dropna: leave out rows whose key is null.
    """
    return frame.groupby(by, sort=False, dropna=dropna)
