"""Entries held and entries read: columns of tables that show them apart where they differ."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ratplus.analysis.draw.tables import number
from ratplus.costs.facts import at_most

READ_CAPTION = (
    " KV read: those of them that a decoding step reads; ≤ marks an upper bound, where the overlap of selected and "
    "static keys depends on data."
)


def reads_apart(rows: pd.DataFrame) -> bool:
    """Whether some pattern reads less than it holds, so that a table needs both columns."""
    return bool(rows["kv_read"].ne(rows["kv_entries"]).any())


def entries(counts: pd.Series, exact: Iterable[bool] | None = None) -> list[str]:
    """Mean entries of a head as text, upper bounds marked."""
    texts = [number(count, 0 if count == round(count) else 1) for count in counts]
    return texts if exact is None else [at_most(*pair) for pair in zip(texts, exact)]
