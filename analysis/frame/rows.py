"""Rows and groups of a frame, typed so that fields can be named: pandas says no more than `tuple` and `Hashable`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
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


def keys_of(frame: pd.DataFrame, names: list[str]) -> list[tuple]:
    """The values of some columns, a tuple a row.

    The rows of `itertuples` are the same, but pandas takes ten times as long to step through a column of texts.
    """
    return list(zip(*(frame[name].to_numpy(dtype=object) for name in names)))


def first_seen(keys: Iterable[Hashable]) -> list[int]:
    """Each key's number, counted in the order in which the keys first appear."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
