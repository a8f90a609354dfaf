"""What the modules' tables and figures say of a few cells whose numbers are chosen."""

import math

import pandas as pd
import pytest

from ratplus.analysis import adaptation_curves, pareto, recurrence, scaling_gap, sensitivity
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.selection import selection_hits
from ratplus.pattern import Pattern, PatternMap

# ---- pareto ----


def test_a_frontier_needs_two_finished_cells(sweep):
    sweep.add("ratplus_tiny", Pattern(1), {"loss": (2.0, 0.1)})
    sweep.add("ratplus_tiny", Pattern(4), status="failed")
    assert not pareto.applies(load_sweep(sweep.write()))
    sweep.add("ratplus_tiny", Pattern(8), {"loss": (math.nan, 0.1)})
    assert not pareto.applies(load_sweep(sweep.write()))
    sweep.add("ratplus_tiny", Pattern(16), {"loss": (2.1, 0.1)})
    assert pareto.applies(load_sweep(sweep.write()))


def test_what_stands_on_a_frontier_and_what_it_costs(sweep):
    """D64 is cheapest, D1 best, D4 between; D2 is worse than D4 and takes more memory, but was timed fastest."""
    for dilation, loss, ms in ((1, 1.5, 4.0), (2, 2.5, 0.5), (4, 2.0, 2.0), (64, 3.0, 1.0)):
        timing = {"decode_ms_per_token": ms}
        sweep.add("attention_tiny", Pattern(dilation), {"loss": (loss, 0.1)}, timing=timing)
    frame = load_sweep(sweep.write())
    rows = pareto.table(frame).set_index("pattern")
    assert dict(rows["frontier_kv"]) == {"D1": True, "D2": False, "D4": True, "D64": True}
    assert dict(rows["frontier_ms"]) == {"D1": True, "D2": True, "D4": True, "D64": False}
    assert "frontier_read" not in rows, "no pattern reads less than it holds"
    shown = pareto.summary(frame)
    assert list(shown["Pattern"]) == ["D64", "D4", "D2", "D1"], "the smallest cache first"
    assert dict(zip(shown["Pattern"], shown["Best for"])) == {
        "D64": "KV, FLOPs", "D4": "KV, FLOPs, ms", "D2": "ms", "D1": "KV, FLOPs, ms",
    }  # fmt: skip
    # 512 entries of 4 layers and heads, keys and values of 16 channels in bfloat16.
    assert dict(zip(shown["Pattern"], shown["KV cache (KiB)"])) == {
        "D1": f"{512 * 16 * 2 * 16 * 2 / 1024:.1f}", "D2": "256.0", "D4": "128.0", "D64": "8.0",
    }  # fmt: skip
    assert dict(zip(shown["Pattern"], shown["ms/token"]))["D4"] == "2.000"


def test_ticks_of_costs_are_at_most_five_powers_of_two_and_none_at_zero():
    """A model without attention reads no entries, which have no place on the axis."""
    for entries, ticks in (
        ((0, 8, 128), [8, 16, 32, 64, 128]), ((8, 256), [8, 32, 128]), ((5, 9), [4, 8, 16]), ((0, 0), [1]),
    ):  # fmt: skip
        assert list(pareto._power_of_two_ticks(pd.Series(entries, dtype="float64")).locs) == ticks


def test_a_line_on_patterns_without_a_loss_is_of_finished_cells(sweep):
    sweep.add("ratplus_tiny", Pattern(1), {"loss": 1.0})
    sweep.add("ratplus_tiny", Pattern.from_label("snap64x16"), {"niah_single_1_substring": 0.5})
    sweep.add("ratplus_tiny", Pattern.from_label("snap128x16"), status="failed")
    sweep.add("ratplus_tiny", Pattern(4), {"niah_single_1_substring": 0.5})
    (line,) = pareto.without_loss(load_sweep(sweep.write()))
    assert line.startswith("No loss, and so on no frontier of it: snap64x16. What")


# ---- sensitivity ----


@pytest.fixture
def places(sweep):
    """A dense cell, and two with one sparse layer: the last layer costs more, the first has no result."""
    sweep.add("ratplus_tiny", Pattern(), {"loss": (1.5, 0.1)})
    for at, loss in ((3, 2.0), (1, 1.75), (0, None)):
        pattern = PatternMap.per_layer([Pattern(64 if layer == at else 1) for layer in range(4)], 4)
        if loss is None:
            sweep.add("ratplus_tiny", pattern, status="failed")
        else:
            sweep.add("ratplus_tiny", pattern, {"loss": (loss, 0.1)})
    return sweep


def test_places_stand_worst_first(places):
    shown = sensitivity.summary(load_sweep(places.write()))
    assert list(shown["Place"]) == ["layer 3: D64", "layer 1: D64", "layer 0: D64"]
    assert list(shown["Loss"]) == ["2.000 ± 0.100", "1.750 ± 0.100", "**failed**"]
    assert list(shown["Rest"]) == ["dense"] * 3


def test_a_heat_map_has_every_layer_and_its_shades_begin_at_nothing(places):
    drawing = sensitivity.figure(load_sweep(places.write()))
    (image,) = drawing.axes[0].images
    assert (image.norm.vmin, image.norm.vmax) == (0.0, 0.5)
    values = image.get_array().filled(math.nan)
    assert values.ravel().tolist() == pytest.approx([math.nan, 0.25, math.nan, 0.5], nan_ok=True)
    assert len(drawing.axes[0].lines) == 1, "a cross where a cell of the sweep has no result"


def test_one_place_is_nothing_to_compare(sweep):
    def add(at: int, only_dense: bool = False, **options):
        odd, rest = (Pattern(), Pattern(64)) if only_dense else (Pattern(64), Pattern())
        patterns = PatternMap.per_layer([odd if layer == at else rest for layer in range(4)], 4)
        sweep.add("ratplus_tiny", patterns, {"loss": 1.0}, **options)

    add(0)
    add(1, status="failed")
    add(2, only_dense=True)
    assert not sensitivity.applies(load_sweep(sweep.write()))
    add(3)
    assert sensitivity.applies(load_sweep(sweep.write()))


@pytest.mark.parametrize(
    ("layers", "heads", "odd", "place"), [(3, 1, (1, 0), (1, None)), (1, 3, (0, 2), (None, 2)), (2, 2, (0, 1), (0, 1))]
)
def test_of_one_head_or_layer_the_whole_is_told(layers, heads, odd, place):
    rows = tuple(tuple(Pattern(4 if (i, j) == odd else 1) for j in range(heads)) for i in range(layers))
    found = sensitivity.single(PatternMap(rows).label, layers, heads)
    assert (found["only"], found["sparse"], found["layer"], found["head"]) == ("sparse", "D4", *place)


# ---- scaling ----


def test_gaps_stand_by_family_and_size_and_need_two_sizes(sweep):
    def add(model: str, parameters: float, gap: float, **options):
        for dilation, loss in ((1, 2.0), (4, 2.0 + gap)):
            sweep.add(model, Pattern(dilation), {"loss": (loss, 0.1)}, parameters=parameters, **options)

    add("attention_b", 2e9, 0.5)
    add("ratplus_b", 5e6, 0.25)
    assert not scaling_gap.applies(load_sweep(sweep.write())), "a size of each family"
    add("ratplus_a", 999e6, 0.125)
    frame = load_sweep(sweep.write())
    assert scaling_gap.applies(frame)
    shown = scaling_gap.summary(frame)
    assert shown.to_dict("list") == {
        "Family": ["RAT+", "RAT+", "attention"], "Model": ["ratplus_b", "ratplus_a", "attention_b"],
        "Parameters": ["5M", "999M", "2.00B"], "D4": ["0.250", "0.125", "0.500"],
    }  # fmt: skip


def test_the_papers_gaps_stand_beside_ours_where_they_are_asked_for(sweep):
    for model, parameters in (("ratplus_b", 5e6), ("ratplus_a", 2e9), ("attention_b", 5e6), ("attention_a", 2e9)):
        for dilation, loss in ((1, 2.0), (4, 2.25)):
            sweep.add(model, Pattern(dilation), {"loss": (loss, 0.1)}, parameters=parameters)
    frame = load_sweep(sweep.write())
    frame.attrs["reference"] = "paper"
    shown = scaling_gap.summary(frame)
    assert shown["Family"].tolist() == ["RAT+"] * 2 + ["attention"] * 2 + ["RAT+ (paper)"] * 3
    paper = shown[shown["Family"].eq("RAT+ (paper)")]
    assert paper["Model"].tolist() == ["RAT+ 1.5B", "RAT+ 2.6B", "RAT+ 7.6B"]
    assert paper["Sparse (paper)"].tolist() == ["0.035", "0.029", "0.022"]
    assert (paper["D4"].unique().tolist(), shown["Sparse (paper)"][0]) == (["—"], "—")
    drawing = scaling_gap.figure(frame)
    stars = [[line for line in axes.lines if line.get_marker() == "*"] for axes in drawing.axes]
    assert [len(some) for some in stars] == [1, 0], "the paper's are of RAT+ alone"
    assert stars[0][0].get_ydata().tolist() == [0.035, 0.029, 0.022]
    assert stars[0][0].get_xdata()[0] == pytest.approx(1.475e9, rel=1e-3)
    assert "RAT+ (paper)" in [text.get_text() for legend in drawing.legends for text in legend.get_texts()]


# ---- adaptation ----


def test_tokens_to_half_are_those_of_the_first_step_at_half_of_the_fall(sweep):
    for dilation, losses in ((4, (4.0, 3.5, 3.0, 3.2, 2.0)), (16, (2.0, 2.5, 2.0)), (64, (3.0, 1.0))):
        curve = [(step, 100 * step, loss) for step, loss in enumerate(losses, start=1)]
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7), curve=curve)
    shown = adaptation_curves.summary(load_sweep(sweep.write()))
    assert shown.drop(columns="Model").to_numpy().tolist() == [
        ["D4", "4.000", "2.000", "300", "500"], ["D16", "2.000", "2.000", "—", "300"],
        ["D64", "3.000", "1.000", "200", "200"],
    ]  # fmt: skip


# ---- gates and hits ----


def test_gates_are_means_over_heads_and_seeds_and_the_longest_memory_is_one_heads():
    rows = pd.DataFrame(
        [("m", "D1", seed, layer, head, 0.1 * (1 + head), 0.0, 1.0, memory)
         for seed, layer, head, memory in ((0, 0, 0, 2.0), (0, 0, 1, 4.0), (1, 0, 0, 6.0), (1, 0, 1, 40.0),
                                           (0, 1, 0, 1.0), (0, 1, 1, 1.0))],
        columns=["run", "pattern", "seed", "layer", "head", "gate_mean", "gate_p10", "gate_p90", "memory_tokens"],
    )  # fmt: skip
    shown = recurrence.summary(rows)
    assert shown.to_numpy().tolist() == [
        ["m", "D1", "0", "0.150", "0.000", "1.000", "13.0", "40.0"],
        ["m", "D1", "1", "0.150", "0.000", "1.000", "1.0", "1.0"],
    ]


def test_the_norms_of_a_scheme_are_those_of_the_second_half():
    rows = pd.DataFrame({"run": "m", "chunk": pd.array([None] * 5, dtype="Int64"), "pattern": "D1",
                         "position": [0, 25, 50, 75, 100], "norm": [9.0, 9.0, 1.0, 2.0, 6.0], "seeds": 1})  # fmt: skip
    (row,) = recurrence.schemes_summary(rows).to_dict("records")
    assert (row["Mean norm"], row["Least"], row["Most"]) == ("3.000", "1.000", "6.000")


def test_the_best_head_is_that_of_means_over_seeds():
    rates = {0: ((0.2, 0.9), (0.4, 0.1)), 1: ((0.2, 0.1), (0.8, 0.1))}
    rows = pd.DataFrame(
        [{"run": "m", "method": "top-k", "pattern": "top4x16", "pattern_name": "", "seed": seed, "task": "recall_long",
          "layer": layer, "head": head, "hit_rate": rate}
         for seed, layers in rates.items() for layer, heads in enumerate(layers) for head, rate in enumerate(heads)]
    )  # fmt: skip
    (row,) = selection_hits.summary(rows).to_dict("records")
    assert (row["Best head (%)"], row["Layer, head"], row["Hits (%)"]) == ("60.0", "1, 0", "35.0")
    assert row["Task"] == "recall long"
