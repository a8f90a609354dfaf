"""Values of the paper, to show beside ours; they are always labelled as the paper's.

Source: X. Wei, C. Gulcehre, "RAT+: Train Dense, Infer Sparse", arXiv 2602.18196 (v5, 28 May 2026, ICML 2026): its
tables of commonsense, LongBench and NIAH per pattern, and its figure of the loss gap against model size. Scores are in
percent; perplexity and gap (nats) are not. Those models have 1.5B to 7.6B parameters and 100B tokens of FineWeb-Edu.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

REFERENCES = ("paper",)
# How many parameters the three sizes have exactly, for the axis of parameters.
PARAMETERS = {"1.5B": 1_474_922_496, "2.6B": 2_651_077_120, "7.6B": 7_647_531_008}


@lru_cache(maxsize=1)
def _paper() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name("paper.csv"))


def paper_rows(suite: str) -> pd.DataFrame:
    """Rows (model, pattern, task, value) of one suite: commonsense, longbench, niah, language or gap."""
    paper = _paper()
    return paper[paper["suite"].eq(suite)].drop(columns="suite").reset_index(drop=True)


def check_reference(name: str | None) -> None:
    """Raises ValueError for a reference that is not known; None stands for no reference."""
    if name is not None and name not in REFERENCES:
        raise ValueError(f"--reference: got {name!r}; allowed: {', '.join(REFERENCES)}")
