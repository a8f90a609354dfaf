"""`pattern.only_layer` and `only_head`, and `sweep=sensitivity` for models of any depth and number of heads."""

import pytest

from ratplus.stages.stage_ids import plan
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.mistakes import UsageError

# Evaluations of the nine cells when the sweep still listed the places of ratplus_tiny one by one.
BEFORE = [
    "01d67a9d88b0", "4c9e99910db9", "c482933428dd", "c8d3702c2ecc", "f4f863eba012", "fbb923200cd3", "4503a95c8eb6",
    "83c5014f7788", "6ac4ffc5206f",
]  # fmt: skip


def test_the_shipped_sweep_keeps_its_ids():
    cells = compose_cells(["sweep=sensitivity"])
    ids = [plan(cell.config, {"tokenizer": "bytes", "sha256": {}}, 257).evaluate.id for cell in cells]
    assert ids == BEFORE


def test_it_fits_any_model():
    words = ["sweep=sensitivity", "model=ratplus_tiny", "model.layers=6", "model.d_model=256", "model.kv_heads=2"]
    labels = [cell.config.patterns.label for cell in compose_cells(words)]
    assert len(labels) == len(set(labels)) == 2 + 6 + 2
    assert labels[2] == "layers[D64,D1x5]"
    assert labels[7] == "layers[D1x5,D64]"
    assert labels[8:] == ["heads[D64x4,D1x4]", "heads[D1x4,D64x4]"], "heads that share keys are one place"


def test_one_head_of_one_layer():
    words = ["model=ratplus_tiny", "pattern=D16", "pattern.only_layer=1", "pattern.only_head=2"]
    assert compose_one(words).config.patterns.label == "mixed[D1x3|D1x2,D16|D1x3|D1x3]"
    cells = compose_cells([*words[:2], "pattern.only_layer=each", "pattern.only_head=each"])
    assert len(cells) == 12


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pattern.only_layer=4"], "pattern.only_layer: got 4; it must be between 0 and 3"),
        (["pattern.only_head=-1"], "pattern.only_head: got -1; it must be between 0 and 2"),
        (["pattern.only_head=all"], "pattern.only_head: got 'all'"),
        (["pattern.only_layer=each"], "each makes several cells; use `ratplus sweep`"),
    ],
)
def test_places_that_are_not_there(words, line):
    with pytest.raises(UsageError) as caught:
        compose_one(["model=ratplus_tiny", "pattern=dilated", *words])
    assert line in str(caught.value)
