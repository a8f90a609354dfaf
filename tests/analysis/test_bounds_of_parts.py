"""Ticks, units, numbers in fields, stretches of positions, shapes of gates: small parts of modules at their edges."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from small_sweeps import frame_of, pattern_of, results

from ratplus.analysis import (
    adaptation_curves,
    masks,
    positions,
    recurrence,
    scaling_gap,
    sensitivity,
)
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits


def test_numbers_stand_in_heat_maps_that_have_room():
    for side, texts in ((8, 64), (9, 0)):
        axes = Figure().subplots()
        recurrence._heat_map(axes, np.ones((side, side)), LogNorm(0.5, 2))
        assert len(axes.texts) == texts
        assert list(axes.get_xticks()) == list(range(0, side, 1 if side == 8 else 2))
        axes = Figure().subplots()
        names = [str(i) for i in range(side)]
        sensitivity._draw(axes, np.ones((side, side)), np.ones((side, side), dtype=bool), names, names, Normalize(0, 2))
        assert len(axes.texts) == texts
    for shape, texts in (((4, 6), 24), ((5, 5), 0)):
        axes = Figure().subplots()
        selection_hits._write(axes, np.ones(shape), Normalize(0, 100))
        assert len(axes.texts) == texts
    for count, ticks in ((12, range(12)), (13, range(0, 13, 2))):
        axes = Figure().subplots()
        names = [str(i) for i in range(count)]
        sensitivity._draw(axes, np.ones((count, 1)), np.ones((count, 1), dtype=bool), names, ["0"], Normalize(0, 2))
        assert [label.get_text() for label in axes.get_yticklabels()] == [str(tick) for tick in ticks]


def test_what_was_selected_is_shown_of_the_first_model_with_recurrence(sweep):
    for model, size in (("attention_tiny", 8), ("ratplus_a", 16), ("ratplus_b", 24)):
        cell = sweep.add(model, pattern_of("top4x16"), results(2.0))
        bits = base64.b64encode(np.packbits(np.ones((size, size), dtype=bool))).decode()
        plain = {"format": 1, "hit_rate": {}, "masks": {"top4x16": {"length": size, "bits": bits}}}
        (sweep.path / "evaluate" / cell["id"] / "selection.json").write_text(json.dumps(plain))
    assert len(masks._seen(frame_of(sweep))["top4x16"]) == 16


@pytest.mark.parametrize(
    ("reads", "ticks"),
    [([8, 128], [8, 16, 32, 64, 128]), ([8, 129], [8, 32, 128]), ([0, 5], [4, 8]), ([0], [1]), ([16], [16])],
)
def test_ticks_of_entries_read(reads, ticks):
    assert accuracy_vs_budget._ticks(pd.Series(reads, dtype="float64")) == ticks


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(999, (1, "")), (1e3, (1e3, " (thousands)")), (1e6, (1e6, " (millions)")), (999_999, (1e3, " (thousands)")),
     (1e9, (1e9, " (billions)"))],
)  # fmt: skip
def test_units_of_tokens(largest, unit):
    assert adaptation_curves._unit(largest) == unit


@pytest.mark.parametrize(
    ("count", "text", "tick"),
    [(999_999, "1M", "0.999999M"), (4.56e6, "4.56M", "4.56M"), (999.9e6, "1e+03M", "999.9M"),
     (1e9, "1.00B", "1B"), (2.345e9, "2.35B", "2.345B")],
)  # fmt: skip
def test_parameters_are_told_in_millions_and_billions(count, text, tick):
    assert (scaling_gap._millions(count), scaling_gap._ticks(count, 0)) == (text, tick)


def test_of_variants_with_as_many_sizes_the_first_is_drawn():
    rows = pd.DataFrame({"variant": ["b", "b", "a", "a", "c"], "parameters": [1.0, 2.0, 1.0, 2.0, 1.0]})
    found, said = scaling_gap._one_variant(rows)
    assert (list(found["variant"]), said) == (["b", "b"], "b; other variants: see table")
    assert scaling_gap._one_variant(rows[:2])[1] == ""
    assert scaling_gap._one_variant(rows.assign(variant=["", "", "a", "a", "c"]))[1].startswith("no other axis; other")


def test_a_narrow_axis_of_parameters_spans_less_than_thirty_times():
    axes = Figure().subplots()
    for high, narrow in ((29.9, True), (30.0, False)):
        axes.set_xlim(1.0, high)
        assert scaling_gap._is_narrow(axes) == narrow


def test_stretches_of_positions_for_a_table():
    def rows(ends, trained):
        return pd.DataFrame({"high": ends, "trained": trained})

    assert positions.spans(rows([64, 128, 256, 512], 128.0)) == [(0, 128), (128, 256), (256, 512)]
    assert positions.spans(rows([512, 100, 128], [128.0, 512.0, 128.0])) == [(0, 128), (128, 512)]
    assert positions.spans(rows([32, 64, 100, 256, 512], 512.0)) == [(0, 64), (64, 256), (256, 512)]
    assert positions.spans(rows([512], 64.0)) == [(0, 512)]


def test_trained_contexts_stand_from_the_shortest_on():
    rows = pd.DataFrame({"trained": [512.0, 128.0, 512.0], "context": 1024})
    assert "pretrained at 128 or 512 tokens" in positions.caption(rows)
    assert [handle.get_label() for handle in positions._legend(rows, {}, {})] == ["trained: 128 or 512"]


def test_the_mean_of_a_stretch_is_of_bins_within_it_by_their_width():
    rows = pd.DataFrame({"low": [0, 64, 128], "high": [64, 128, 512], "value": [1.0, 2.0, 6.0]})
    assert positions._mean(rows, 0, 128) == 1.5
    assert positions._mean(rows, 64, 512) == (2 * 64 + 6 * 384) / 448
    assert math.isnan(positions._mean(rows, 0, 63))


def test_shapes_of_gates_at_their_edges():
    def gates(layers=1, heads=1, count=1, **change):
        per_head = [[0.5] * heads for _ in range(layers)]
        norms = [[1.0] * count for _ in range(layers)]
        names = ("gate_mean", "gate_p10", "gate_p90", "memory_tokens")
        return {**dict.fromkeys(names, per_head), "key_norm": norms, "value_norm": norms,
                "positions": list(range(count))} | change  # fmt: skip

    assert recurrence._misshapen(gates(2, 3, 4)) == ""
    assert recurrence._misshapen(gates(1, 2, 1, recurrence_chunk=4)) == ""
    assert recurrence._misshapen(gates(1, 2, 1, recurrence_chunk=4.5)) == "recurrence_chunk is no whole number"
    assert recurrence._misshapen(gates(2, 3, 0)) == "2 layers of 3 heads at 0 positions"
    assert recurrence._misshapen(gates(2, 0, 1)) == "2 layers of 0 heads at 1 positions"
    assert recurrence._misshapen(gates(2, 3, 4, positions=[0, 1, 2, "x"])) == "positions are no numbers"
    assert recurrence._misshapen(gates(2, 3, 4, gate_p10=[[0.5] * 3])) == "gate_p10 is no list of 2 lists of 3 numbers"
    assert recurrence._misshapen(gates(2, 3, 4, key_norm=[[1.0] * 4, (1.0,) * 4])) == (
        "key_norm is no list of 2 lists of 4 numbers"
    )


def test_more_numbers_of_gates_than_are_read(monkeypatch):
    monkeypatch.setattr(recurrence, "MOST_NUMBERS", 6)
    rows = {"gate_mean": [[0.5] * 3] * 2, "positions": [0, 1]}
    with pytest.raises(KeyError):  # not refused: the rest is looked at
        recurrence._misshapen(rows)
    assert recurrence._misshapen(rows | {"positions": [0, 1, 2, 3]}) == "2 layers of 3 heads at 4 positions"
