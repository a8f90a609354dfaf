"""How many passes a search takes, before it runs: by phase, in whole passes over one split."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ratplus.config.search import SearchSection
from ratplus.pattern import Pattern
from ratplus.search.budgets import Budget
from ratplus.search.units import Space

# Options besides uniform patterns that verify may compare, and baselines besides random ones that test does.
_OPTIONS, _BASELINES = 5, 7


def planned(space: Space, section: SearchSection, candidates: Sequence[Pattern], budgets: Sequence[Budget]) -> dict:
    """{phase: passes}, an upper bound: what two budgets share, and what is stored already, counts each time.

    Args:
        space: the finest units that the search may come to.
    """
    kinds, layers = len(candidates), space.layers
    other = kinds - any(p.dense for p in candidates)
    # A substitution in layer l runs the layers from l on.
    share = (layers + 1) / (2 * layers)
    if section.over == "layers,heads":
        units = space.kv_heads * min(section.undecided, layers) + max(0, layers - section.undecided)
    else:
        units = len(space.units)
    found: dict[str, float] = {"uniform patterns": 1 + kinds}
    if section.anchor != "sparse" or section.over == "layers,heads":
        found["substitutions in the dense model"] = units * other * share
        if section.over == "layers,heads":
            found["substitutions in the dense model"] += layers * other * share
    if section.screen:
        found["screen"] = kinds / 2
    if section.anchor != "dense":
        found["substitutions in a sparse model"] = len(budgets) * units * (kinds - 1) * share
    again = section.remeasure * math.ceil(units / 5) * (kinds - 1) * share
    found["re-measuring"] = len(budgets) * again
    found["exchanges"] = len(budgets) * section.swaps
    found["verify"] = 1 + kinds + len(budgets) * _OPTIONS
    found["test"] = 1 + kinds + len(budgets) * (_BASELINES + section.random)
    return {phase: passes for phase, passes in found.items() if passes}
