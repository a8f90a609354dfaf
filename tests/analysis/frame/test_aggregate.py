"""Rows over seeds, their order, their names, and the words on what is not finished: of cells chosen by hand."""

import math

import pandas as pd
import pytest

from ratplus.analysis.frame.aggregate import (
    error_source,
    first_problem,
    in_order,
    over_seeds,
    progress,
    reference_cells,
    run_name,
    sharing,
    short_patterns,
    unfinished,
)
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern, PatternMap


def labels(sweep, *patterns) -> list[str]:
    for pattern in patterns:
        sweep.add("ratplus_tiny", Pattern.from_label(pattern) if isinstance(pattern, str) else pattern)
    return list(in_order(load_sweep(sweep.write()))["pattern"])


def test_patterns_stand_by_dilation_then_window_then_sinks_and_methods_by_what_they_read(sweep):
    hybrids = [PatternMap.per_layer([Pattern(d), Pattern(), Pattern(), Pattern()], 4) for d in (64, 4)]
    given = [
        *hybrids, "quest8x16", "top8x16", "quest4x16", "stream-W64-I4", "stream-W64", "stream-W32-I8", "D4-W64-I4",
        "D4-W64", "D4-I8", "D4", "D16", "D1-W64", "D1",
    ]  # fmt: skip
    assert labels(sweep, *given) == [
        "D1", "D1-W64", "D4", "D4-I8", "D4-W64", "D4-W64-I4", "D16", "stream-W32-I8", "stream-W64", "stream-W64-I4",
        "quest4x16", "quest8x16", "top8x16", "layers[D64,D1x3]", "layers[D4,D1x3]",
    ]  # fmt: skip


def test_cells_stand_by_model_and_variant_as_the_sweep_lists_them_and_seeds_rise(sweep):
    for model, rate, seed in (("b", 2, 1), ("a", 1, 0), ("b", 1, 0), ("b", 2, 0)):
        for dilation in (4, 1):
            sweep.add(model, Pattern(dilation), seed=seed, axes={"train.adapt.lr": rate})
    frame = in_order(load_sweep(sweep.write()))
    assert list(frame.drop_duplicates(["model", "variant"])["model"]) == ["b", "a", "b"]
    rows = frame[["model", "train.adapt.lr", "dilation", "seed"]].head(4).to_numpy().tolist()
    assert rows == [["b", 2, 1, 0], ["b", 2, 1, 1], ["b", 2, 4, 0], ["b", 2, 4, 1]]


def test_means_are_of_finished_seeds_and_never_without_one_that_diverged(sweep):
    nan = math.nan
    for dilation, losses in ((1, (1.0, 2.0, 4.0)), (2, (1.0, nan, 4.0)), (4, (3.0, None, None)), (8, (None,) * 3)):
        for seed, loss in enumerate(losses):
            if loss is None:
                sweep.add("ratplus_tiny", Pattern(dilation), seed=seed, status="failed" if seed else "missing")
            else:
                sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.5)}, seed=seed)
    frame = load_sweep(sweep.write())
    # A loss that is no number makes a cell a failed one when it is read; here the mean itself is looked at.
    frame.loc[frame["dilation"].eq(2), "status"] = "done"
    rows = over_seeds(in_order(frame), ["loss"]).set_index("pattern")
    assert rows.loc["D1", "loss"] == pytest.approx(7 / 3)
    assert rows.loc["D1", "loss_stderr"] == pytest.approx(pd.Series([1.0, 2.0, 4.0]).std() / math.sqrt(3))
    assert math.isnan(rows.loc["D2", "loss"])
    assert (rows.loc["D4", "loss"], rows.loc["D4", "loss_stderr"]) == (3.0, 0.5)
    assert math.isnan(rows.loc["D8", "loss"])
    assert list(rows["cells"]) == [3, 3, 3, 3]
    assert list(rows["done"]) == [3, 3, 1, 0]
    assert list(rows["status"]) == ["done", "done", "done", "failed"]


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (("missing", "running"), "running"), (("running", "failed"), "failed"), (("failed", "damaged"), "damaged"),
        (("damaged", "done"), "done"), (("missing", "missing"), "missing"),
    ],
)  # fmt: skip
def test_a_row_has_the_most_serious_status_of_its_seeds_unless_one_is_done(sweep, statuses, status):
    for seed, one in enumerate(statuses):
        sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0}, seed=seed, status=one)
    assert list(over_seeds(load_sweep(sweep.write()), ["loss"])["status"]) == [status]


def test_the_reference_is_the_finished_cell_of_the_same_model_variant_and_seed(sweep):
    dense = {}
    for model, seed, status in (("a", 0, "done"), ("a", 1, "failed"), ("b", 1, "done")):
        cell = sweep.add(model, Pattern(), {"loss": 1.0}, seed=seed, status=status)
        dense[model, "", seed] = cell["id"]
        sweep.add(model, Pattern(4), {"loss": 1.0}, seed=seed, pattern_name="D1")
    frame = load_sweep(sweep.write())
    del dense["a", "", 1]
    assert reference_cells(frame) == dense
    assert reference_cells(frame, "D1") == dense, "a label goes before the name of a group"
    assert len(reference_cells(frame, "D4")) == 3
    assert reference_cells(frame, "D8") == {}


def test_what_errors_are_of_is_what_the_row_with_most_seeds_has(sweep):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0})
    assert error_source(load_sweep(sweep.write())) == "of the evaluation"
    for seed in (0, 1, 2):
        sweep.add("ratplus_tiny", Pattern(8), {"loss": 1.0}, seed=seed)
    assert error_source(load_sweep(sweep.write())) == "over 3 seeds (of the evaluation where one has finished)"


def test_words_on_what_is_not_finished():
    def frame(*statuses):
        return pd.DataFrame({"status": statuses, "error": [f"e{i}" for i in range(len(statuses))]})

    whole = frame("done", "done")
    assert (progress(whole), unfinished(whole), first_problem(whole)) == ("2 of 2 cells finished", [], "")
    some = frame("done", "missing", "damaged", "running", "failed", "failed")
    assert progress(some) == "1 of 6 cells finished (1 damaged, 2 failed, 1 running, 1 missing)"
    assert unfinished(some) == [f"{progress(some)}."]
    assert first_problem(some) == "; 3 cells are damaged or failed, the first: e2"
    assert first_problem(frame("missing", "damaged")) == "; 1 cell is damaged or failed, the first: e1"
    assert first_problem(frame("missing", "running")) == ""


def test_labels_are_shortened_where_they_are_too_long_and_stay_different():
    long, other, third = "layers[D1,D64]x3", "layers[D64,D1]x3", "layers[D2,D64]x33"
    rows = pd.DataFrame(
        {
            "pattern": [long, "exactly_sixteen_", long, other, third, "D4"],
            "pattern_name": ["mix", "e", "mix", "mix", "", "d"],
        }
    )
    assert short_patterns(rows, longest=16) == {p: p for p in rows["pattern"] if p != third} | {third: "hybrid"}
    assert short_patterns(rows, longest=15) == {
        long: "mix", "exactly_sixteen_": "e", other: "mix 2", third: "hybrid", "D4": "D4",
    }  # fmt: skip


def test_names_of_runs_and_of_shared_heads():
    assert run_name("m", "") == "m"
    assert run_name("m", "train.adapt.lr=1, model.kv_heads=2, model.x=None, other.model.y=3") == (
        "m, adapt.lr=1, kv_heads=2, other.model.y=3"
    )
    assert [sharing(8, held) for held in (8, 4, 1)] == ["", "GQA-4", "MQA"]
    assert sharing(1, 1) == ""
