"""The column of methods: what a reader calls a pattern (`PatternFacts.method`), where its label does not say so."""

from __future__ import annotations

import pandas as pd

from ratplus.analysis.frame.aggregate import SELECTING
from ratplus.costs.facts import MIXERS


def needs_methods(rows: pd.DataFrame) -> bool:
    """Whether some pattern selects by query or some model has no attention: labels of the others say what they are."""
    return bool((rows["kind"].isin(SELECTING) | rows["method"].isin(MIXERS)).any())


def with_attention(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells whose model has attention, and so a pattern; models with a state in its place have none."""
    return frame[~frame["method"].isin(MIXERS)]
