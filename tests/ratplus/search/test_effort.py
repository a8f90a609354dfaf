"""How many passes a search takes, counted by hand: four layers of two heads of keys, candidates D1, D4 and D16."""

import pytest

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.search.budgets import Budget
from ratplus.search.effort import planned
from ratplus.search.units import Space, candidates_of

CONFIG = ModelConfig(vocab_size=50, layers=4, d_model=32, d_head=8, kv_heads=2, max_len=64)
# From layer l on, so of 4 layers (4 + 3 + 2 + 1) / 4 / 4 of a pass on average.
SHARE = 5 / 8


def passes(over: str = "layers", labels=("D1", "D4", "D16"), budgets=2, **keys) -> dict:
    given = {"remeasure": 0, "swaps": 0, "random": 0, "screen": False, "undecided": 3} | keys
    section = SearchSection(model="m", over=over, candidates=list(labels), **given)
    candidates = candidates_of(section.candidates, True)
    space = Space.of(CONFIG, candidates, range(4) if "heads" in over else [])
    return planned(space, section, candidates, [Budget.parse("kv:0.3")] * budgets)


def test_what_every_search_measures():
    """Dense and three uniform patterns; for each budget five options on verify, seven baselines on test."""
    assert passes(anchor="dense") == {
        "uniform patterns": 4, "substitutions in the dense model": 4 * 2 * SHARE, "verify": 4 + 2 * 5,
        "test": 4 + 2 * 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "phase", "count"),
    [
        ({"over": "heads"}, "substitutions in the dense model", 8 * 2 * SHARE),
        ({"over": "heads"}, "substitutions in a sparse model", 2 * 8 * 2 * SHARE),
        ({}, "substitutions in a sparse model", 2 * 4 * 2 * SHARE),
        ({"budgets": 1}, "substitutions in a sparse model", 4 * 2 * SHARE),
        # Without a dense candidate each of the three takes dense's place.
        ({"labels": ("D2", "D4", "D16")}, "substitutions in the dense model", 4 * 3 * SHARE),
        # All layers, then the heads of three; the fourth stays one unit.
        ({"over": "layers,heads"}, "substitutions in the dense model", (4 + 2 * 3 + 1) * 2 * SHARE),
        ({"over": "layers,heads"}, "substitutions in a sparse model", 2 * (2 * 3 + 1) * 2 * SHARE),
        ({"over": "layers,heads", "undecided": 9, "anchor": "sparse"}, "substitutions in the dense model",
         (4 + 2 * 4) * 2 * SHARE),
        ({"screen": True}, "screen", 3 / 2),
        ({"remeasure": 3}, "re-measuring", 2 * 3 * 1 * 2 * SHARE),  # a fifth of 4 units, at least one
        ({"remeasure": 3, "over": "heads"}, "re-measuring", 2 * 3 * 2 * 2 * SHARE),
        ({"swaps": 9}, "exchanges", 2 * 9),
        ({"random": 20}, "test", 4 + 2 * (7 + 20)),
    ],
)  # fmt: skip
def test_what_a_key_adds(keys, phase, count):
    assert passes(**keys)[phase] == pytest.approx(count)


def test_phases_that_take_nothing_are_not_told():
    assert "substitutions in the dense model" not in passes(anchor="sparse")
    assert "substitutions in a sparse model" not in passes(anchor="dense")
    assert not {"screen", "re-measuring", "exchanges"} & passes().keys()
