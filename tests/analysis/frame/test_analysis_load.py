"""Loading a sweep folder: columns, states of cells, and clear errors."""

import math
import subprocess
import sys

import pandas as pd
import pytest

from ratplus.analysis import ablation, pareto
from ratplus.analysis.frame.aggregate import over_seeds, with_loss_delta
from ratplus.analysis.frame.load import FIXED, METRICS, Names, load_sweep
from ratplus.costs.cost import cost
from ratplus.pattern import Pattern, PatternMap


def test_one_row_a_cell_with_the_documented_columns(demo):
    frame = load_sweep(demo)
    results = [name + suffix for name in METRICS for suffix in ("", "_stderr")]
    extra = ["recall_accuracy_1_64", "recall_accuracy_1_64_stderr"]
    assert list(frame.columns) == [*FIXED, *results, *extra]
    assert len(frame) == 22
    assert frame["status"].eq("done").all()
    assert frame.attrs["sweep"] == "demo"


def test_patterns_are_described_and_costed(demo):
    frame = load_sweep(demo).set_index(["model", "pattern"])
    local = frame.loc[("ratplus_tiny", "D16-W64")]
    assert (local.kind, local.dilation, local.window, local.sinks) == ("dilated_local", 16, 64, 0)
    expected = cost(PatternMap.uniform(Pattern(16, 64), 4, 4), 512, 16, recurrence=True)
    assert local.kv_entries == expected.kv_entries_per_head == 64 + 28
    assert local.kv_bytes == expected.cache_bytes
    assert local.attention_flops_ratio == expected.attention_flops_ratio
    assert local.recurrence
    streaming = frame.loc[("attention_tiny", "stream-W64-I4")]
    assert streaming.kind == "streaming"
    assert pd.isna(streaming.dilation)
    assert (streaming.window, streaming.sinks) == (64, 4)
    hybrid = frame.loc[("attention_tiny", "layers[D1,D64x2,D1]")]
    assert (hybrid.kind, hybrid.pattern_name) == ("hybrid", "hybrid_layers")
    assert hybrid[["dilation", "window", "sinks"]].isna().all()
    assert hybrid.kv_entries == (512 + 8) / 2
    assert frame.loc[("attention_tiny", "D1"), "kind"] == "dense"
    assert frame.loc[("attention_tiny", "D2"), "kind"] == "dilated"


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        (Pattern(16, 0, 4), "dilated_local"),
        (Pattern(16, 64, 4), "dilated_local"),
        (Pattern(1, 64), "dense"),
        (Pattern(None, 0, 4), "streaming"),
        (Pattern(16), "dilated"),
    ],
)
def test_kinds_of_patterns(sweep, pattern, kind):
    sweep.add("ratplus_tiny", pattern, sweep.results(1.7))
    assert list(load_sweep(sweep.write())["kind"]) == [kind]


def test_plain_dense_attention_is_the_reference_wherever_it_stands(sweep):
    """D1 with a window sees the same keys; but its numbers are another cell's."""
    for pattern, loss in ((Pattern(1, 64), 1.5), (Pattern(16), 2.0), (Pattern(1), 1.75)):
        sweep.add("ratplus_tiny", pattern, sweep.results(loss))
    frame = with_loss_delta(load_sweep(sweep.write())).set_index("pattern")
    assert frame.loc["D16", "loss_delta"] == pytest.approx(0.25)
    assert frame.loc["D1-W64", "loss_delta"] == pytest.approx(-0.25)
    assert frame.loc["D1", "loss_delta"] == 0


def test_states_of_cells(sweep):
    for dilation, status in enumerate(("done", "failed", "running", "missing", "damaged"), start=1):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7), status=status)
    frame = load_sweep(sweep.write()).set_index("dilation")
    assert list(frame["status"]) == ["done", "failed", "running", "missing", "damaged"]
    assert frame.loc[1, "loss"] == 1.7
    assert frame.loc[2, "error"] == "RuntimeError: it broke"
    assert frame.loc[5, "error"].startswith("evaluate/")  # without the folders above the sweep
    assert frame.loc[2:, "loss"].isna().all()
    assert list(frame.loc[[1, 3, 4], "error"]) == ["", "", ""]


@pytest.mark.parametrize("stage", ["pretrain", "adapt"])
def test_an_earlier_stage_decides_for_the_cells_that_wait_for_it(sweep, stage):
    states = ["failed", "running", "missing", "damaged"]
    for seed, status in enumerate(states):
        sweep.add("ratplus_tiny", Pattern(2), seed=seed, status=status, at=stage, message="boom\n")
    frame = load_sweep(sweep.write())
    assert list(frame["status"]) == states
    assert frame.loc[0, "error"] == "RuntimeError: boom"


def test_an_error_without_message_is_named_by_its_type(sweep):
    sweep.add("ratplus_tiny", Pattern(2), status="failed", message="")
    assert load_sweep(sweep.write())["error"][0] == "RuntimeError"


def test_unknown_metrics_axes_and_clashing_names(sweep):
    metrics = {**sweep.results(1.7), "my_task": (0.25, 0.01), "seed": 3.0}
    sweep.add("ratplus_tiny", Pattern(4), metrics, axes={"train.lr": 1e-3, "eval.tasks": ["a", "b"], "model": "x"})
    sweep.add("ratplus_tiny", Pattern(4), {}, axes={"train.lr": 3e-4})
    frame = load_sweep(sweep.write())
    assert frame.columns.is_unique
    assert list(frame["metric:seed"].dropna()) == [3.0]
    assert list(frame["seed"]) == [0, 0]
    assert frame["my_task"][0] == 0.25
    assert math.isnan(frame["my_task"][1])
    assert math.isnan(frame["loss"][1])
    assert list(frame["train.lr"]) == [1e-3, 3e-4]
    assert frame["eval.tasks"][0] == '["a", "b"]'
    assert frame["axis:model"][0] == "x"
    assert frame["variant"][1] == "train.lr=0.0003"


def test_memory_of_older_records_has_its_new_name(sweep):
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.7), timing={"peak_memory_bytes": 5})
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7), timing={"process_peak_memory_bytes": 7})
    frame = load_sweep(sweep.write())
    assert list(frame["timing:process_peak_memory_bytes"]) == [5, 7]
    assert "timing:peak_memory_bytes" not in frame


def test_names_that_tables_use_for_columns_of_their_own(sweep):
    names = ("run", "cells", "done", "average", "loss_delta", "frontier_kv", "combination")
    for dilation in (1, 4):
        metrics = sweep.results(1.7, 0.5) | {name: 0.25 for name in names}
        sweep.add("ratplus_tiny", Pattern(dilation), metrics, axes={"x": 1, "train.adapt.steps": dilation})
    frame = load_sweep(sweep.write())
    assert {f"metric:{name}" for name in names} <= set(frame.attrs["metrics"])
    assert set(frame.attrs["axes"]) == {"axis:x", "train.adapt.steps"}
    rows = over_seeds(with_loss_delta(frame), [*frame.attrs["metrics"], "loss_delta"])
    assert list(rows["metric:cells"]) == [0.25, 0.25]
    assert list(rows["cells"]) == [1, 1]
    for table in (pareto.table(frame), ablation.table(frame)):
        assert table.columns.is_unique


@pytest.mark.filterwarnings("error")
def test_means_of_many_metrics_without_a_warning(sweep):
    # eval=ruler has more than a hundred with those by depth, and pandas warns of frames that grow one by one.
    many = {f"niah_{i}_substring": i / 100 for i in range(80)}
    sweep.add("ratplus_tiny", Pattern(), sweep.results(1.7) | many)
    frame = load_sweep(sweep.write())
    rows = over_seeds(frame, frame.attrs["metrics"])
    assert [rows[name][0] for name in many] == list(many.values())
    assert list(rows.columns[:2]) == ["run", "model"]


def test_without_adaptation_and_without_cells(sweep):
    cell = sweep.add("ratplus_tiny", Pattern(), sweep.results(1.7))
    del cell["stages"]["adapt"]
    assert list(load_sweep(sweep.write())["status"]) == ["done"]
    sweep.cells.clear()
    empty = load_sweep(sweep.write())
    assert len(empty) == 0
    assert set(FIXED) < set(empty.columns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "holds no sweep.json"),
        ("{", "damaged"),
        ("[]", "no list of cells"),
        ('{"format": 1}', "no list of cells"),
        ('{"format": 7, "cells": []}', "format 7"),
        ('{"format": 1, "cells": [{"id": "a"}]}', "cell number 1 lacks the key 'axes'"),
        ('{"format": 1, "cells": [3]}', "cell number 1 is not understood"),
    ],
)
def test_bad_sweep_file(tmp_path, text, said):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load_sweep(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_pattern_that_does_not_fit_the_model(sweep):
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    sweep.cells[0]["pattern"] = {"dilation": [[1, 2]], "window": 0, "sinks": 0}
    with pytest.raises(ValueError, match=r"cell number 1 is not understood \(pattern.dilation"):
        load_sweep(sweep.write())


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_sweep(tmp_path / "absent")


def test_many_cells_load_quickly(sweep):
    sweep.add("ratplus_tiny", Pattern(16), sweep.results(1.7))
    cell = sweep.cells[0]
    sweep.cells = [{**cell, "seed": seed} for seed in range(3000)]
    code = (
        "import sys, time\nfrom ratplus.analysis.frame.load import load_sweep\n"
        "start = time.process_time()\nframe = load_sweep(sys.argv[1])\n"
        "assert len(frame) == 3000 and time.process_time() - start < 5\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(sweep.write())], check=True, timeout=60)


def test_heads_of_keys_are_counted_apart_from_heads(sweep):
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7), kv_heads=1)
    frame = load_sweep(sweep.write())
    assert list(frame["kv_heads"]) == [1]
    assert list(frame["heads"]) == [4]


def test_finished_cells_without_a_loss_are_named(sweep):
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.7))
    without = sweep.add("ratplus_tiny", Pattern(2), {"my_task": 0.5})
    sweep.add("ratplus_tiny", Pattern(4), status="missing")
    assert load_sweep(sweep.write()).attrs["no_loss"] == [without["id"]]


def test_no_standard_error_takes_the_place_of_a_metric(sweep):
    """`seed` becomes `metric:seed`, whose error would be called like a metric that is there."""
    sweep.add("ratplus_tiny", Pattern(1), {"seed": (3.0, 0.5), "metric:seed_stderr": (5.0, 0.25)})
    frame = load_sweep(sweep.write())
    assert (frame["metric:seed_stderr"][0], frame["metric:seed_stderr_stderr"][0]) == (5.0, 0.25)
    assert (frame["metric:metric:seed"][0], frame["metric:metric:seed_stderr"][0]) == (3.0, 0.5)


def test_names_among_attrs_are_not_copied_with_every_column():
    """Copied, three thousand results make a report of three cells take many minutes."""
    frame = pd.DataFrame({"a": [1.0], "b": [2.0]})
    frame.attrs["metrics"] = Names(["a", "b"])
    assert frame["a"].attrs["metrics"] is frame.attrs["metrics"]
    assert frame[["a"]].copy().attrs["metrics"] == ["a", "b"]


def test_keys_of_evaluation_that_follow_from_the_others_name_no_run(sweep):
    for steps, rows in ((0, 32), (400, 0)):
        for length in (64, 128):
            axes = {"train.sft.steps": steps, "eval.recall_rows": rows, "eval.niah.length": length}
            sweep.add("ratplus_tiny", Pattern(4), {}, axes=axes)
    frame = load_sweep(sweep.write())
    # What is asked follows from the steps; the length does not, and neither would the steps if they were dropped first.
    assert list(frame["variant"]) == [
        f"eval.niah.length={length}, train.sft.steps={steps}" for steps in (0, 400) for length in (64, 128)
    ]
    assert list(frame["eval.recall_rows"]) == [32, 32, 0, 0]


def test_a_key_of_evaluation_is_named_where_one_run_differs_in_it(sweep):
    for model, rows in (("a", 0), ("a", 1), ("b", 0)):
        sweep.add(model, Pattern(4), {}, axes={"eval.recall_rows": rows})
    assert list(load_sweep(sweep.write())["variant"]) == [f"eval.recall_rows={rows}" for rows in (0, 1, 0)]
