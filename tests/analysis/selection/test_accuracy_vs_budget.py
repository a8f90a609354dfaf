"""Accuracy against entries read: methods side by side, entries held and read apart, bounds marked."""

import json

import pytest

from ratplus.analysis import accuracy_vs_dilation, masks, pareto, pattern_tables
from ratplus.analysis.frame.aggregate import in_order
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.frame.tasks import is_cost
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits
from ratplus.pattern import Pattern, PatternMap

LABELS = (
    "D1", "D64", "D16", "stream-W60-I4", "stream-W124-I4", "top4x16", "top8x16", "quest4x16", "D64-top4x16",
    "D64-W16-top4x16", "random4x16", "snap128x16",
)  # fmt: skip


def results(rank: int, loss: bool = True) -> dict:
    found = {"niah_multikey_2_substring": (0.9 - rank / 20, 0.02), "niah_multikey_2_overlap": (0.05, 0.02)}
    if loss:
        found |= {"loss": (1.7 + rank / 50, 0.01), "perplexity": (5.5, 0.1), "recall_accuracy": (0.9 - rank / 15, 0.02)}
        found |= {"recall_accuracy_1_64": (0.9, 0.02)}
    return found


@pytest.fixture
def frame(sweep):
    for model in ("attention_tiny", "ratplus_tiny"):
        for rank, label in enumerate(LABELS):
            metrics = results(rank, loss=not label.startswith("snap"))
            if rank > 4:
                metrics |= {"selection_density": (0.125, 0.01), "selection_hit_rate": (0.5, 0.01)}
            sweep.add(model, Pattern.from_label(label), metrics)
    return load_sweep(sweep.write("topk"))


def test_held_and_read_stand_apart(frame):
    shown = accuracy_vs_budget.summary(frame).set_index(["Model", "Pattern"]).loc["ratplus_tiny"]
    assert list(shown["Method"]) == [
        "dense", "dilated", "dilated", "streaming", "streaming", "top-k", "top-k", "Quest", "top-k + D64",
        "top-k + D64-W16", "random blocks", "SnapKV",
    ]  # fmt: skip
    top = shown.loc["top4x16"]
    assert (top["KV held"], top["KV read"]) == ("512", "48")
    # 3 whole blocks of 16 and what dilation keeps of the 29 others: the step at 512 begins a block.
    assert shown.loc["D64-top4x16", "KV read"] == "≤ 56"
    assert shown.loc["D64-W16-top4x16", "KV read"].startswith("≤ ")
    assert shown.loc["snap128x16", ["KV held", "KV read", "Loss"]].tolist() == ["128", "128", "—"]
    assert (top["Measured (%)"], top["Hits (%)"]) == ("12.5", "50.0")
    assert shown.loc["D16", "Measured (%)"] == "—"
    assert "≤ marks an upper bound" in accuracy_vs_budget.caption(frame)


@pytest.mark.parametrize("there", [("density",), ("hit_rate",), ("density", "hit_rate"), ()])
def test_the_caption_tells_of_the_columns_that_are_there(sweep, there):
    measured = {f"selection_{name}": (0.25, 0.01) for name in there}
    for label in ("D1", "top4x16"):
        sweep.add("ratplus_tiny", Pattern.from_label(label), results(0) | measured)
    some = load_sweep(sweep.write("topk"))
    columns, caption = accuracy_vs_budget.summary(some), accuracy_vs_budget.caption(some)
    assert ("Measured (%)" in columns, " Measured: " in caption) == 2 * ("density" in there,)
    assert ("Hits (%)" in columns, " Hits: " in caption) == 2 * ("hit_rate" in there,)
    assert "before the step at position 512, mean" in caption


def test_results_are_whole_tasks(frame):
    assert accuracy_vs_budget.results_of(frame) == ["loss", "recall_accuracy", "niah_multikey_2_substring"]
    assert is_cost("selection_density")
    assert is_cost("selection_hit_rate")
    assert not is_cost("my_selection_hit_rate_task")
    data = accuracy_vs_budget.table(frame)
    assert len(data) == 2 * len(LABELS)
    assert set(data["kv_read_exact"]) == {True, False}


def test_of_several_measures_of_a_task_the_first_counts(sweep):
    for dilation in (1, 4):
        shares = dict.fromkeys(("piqa/acc_norm", "piqa/acc", "piqa/f1", "mine/em", "mine/score"), 0.5)
        sweep.add("ratplus_tiny", Pattern(dilation), shares | {"perplexity": 3.0, "decode_kv_bytes": 1.0, "loss": 1.0})
    assert accuracy_vs_budget.results_of(load_sweep(sweep.write())) == ["loss", "mine/score", "piqa/acc"]


def test_figure_has_a_line_a_method_and_a_column_a_model(frame):
    drawing = accuracy_vs_budget.figure(frame)
    assert [axes.get_title() for axes in drawing.axes[:2]] == ["attention_tiny", "ratplus_tiny"]
    assert len(drawing.axes) == 2 * 3
    legend = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert legend[:2] == ["dilated", "streaming"]
    assert legend[-2:] == ["dense", "at most so many read"]
    assert [text.get_text() for text in drawing.axes[-1].get_xticklabels()] == ["8", "16", "32", "64", "128"]
    lines = drawing.axes[0].get_lines()
    assert any(list(line.get_xdata()) == [48, 112] for line in lines)  # top4x16 and top8x16


def test_other_modules_show_the_new_kinds(frame):
    cells = in_order(frame[frame["model"].eq("ratplus_tiny")])
    assert list(cells["kind"])[5:] == ["topk", "topk", "quest", "topk", "topk", "random", "snapkv"]
    shown = accuracy_vs_dilation.summary(frame)
    assert list(shown["KV read"][:2]) == ["512", "32"]
    # SnapKV was not asked for a loss: that is no loss that is not a number.
    assert list(shown["Loss"][shown["Pattern"].eq("snap128x16")]) == ["—", "—"]
    ticks = [text.get_text() for text in accuracy_vs_dilation.figure(frame).axes[-1].get_xticklabels()]
    assert ticks == ["1", "2", "4", "8", "16", "32", "64", "none"]
    found = pareto.table(frame)
    assert found.loc[found["pattern"].eq("top4x16"), "kv_read"].tolist() == [48, 48]
    assert "frontier_read" in found
    assert "KV read" in pareto.summary(frame)
    assert pareto.figure(frame).axes
    assert {pattern.label for pattern in masks.patterns(frame)} == set(LABELS)


def test_tables_of_tasks_name_the_method(frame):
    shown = pattern_tables.summary(frame, "niah").set_index(["Model", "Pattern"]).loc["ratplus_tiny"]
    assert shown.loc["quest4x16", "Method"] == "Quest"
    assert shown.loc["D64-top4x16", "Method"] == "top-k + D64"
    assert shown.loc["snap128x16", "Method"] == "SnapKV"
    assert "method" in pattern_tables.table(frame, "niah")
    (made,) = [made for made in pattern_tables.contents(frame) if made.name == "pattern_tables_niah"]
    assert list(made.shown.columns[: made.names]) == ["Model", "Method", "Pattern"]


def test_a_method_without_a_loss_is_weighed_by_needles(frame):
    rows = pareto.table(frame).set_index(["run", "pattern"]).loc["attention_tiny"]
    assert rows.loc["snap128x16", "needles"] == pytest.approx(0.9 - (len(LABELS) - 1) / 20)
    assert not rows.loc["snap128x16", "frontier_kv"]  # it has no loss
    # D64 holds 8 entries and finds more; SnapKV's 128 find least of all.
    assert bool(rows.loc["D64", "frontier_kv_needles"])
    assert not rows.loc["snap128x16", "frontier_kv_needles"]
    made, picture = pareto.contents(frame)
    assert any("No loss, and so on no frontier of it: snap128x16." in note for note in made.notes)
    assert not any("No loss" in note and "top4x16" in note for note in made.notes)
    titles = [axes.get_ylabel() for axes in picture.figure.axes if axes.get_ylabel()]
    assert titles == ["Held-out loss (nats)", "Recall accuracy (%)", "Needles found (%)"]
    assert list(made.shown.columns[:3]) == ["Model", "Method", "Pattern"]
    assert {"Needles (%)", "Best for", "Best for (needles)"} <= set(made.shown)


def test_needles_alone_make_a_frontier(sweep):
    for label, found in (("D1", 0.9), ("snap128x16", 0.8), ("snap64x16", 0.85)):
        sweep.add("ratplus_tiny", Pattern.from_label(label), {"niah_multikey_2_substring": (found, 0.02)})
    frame = load_sweep(sweep.write())
    assert pareto.applies(frame)
    shown = pareto.summary(frame).set_index("Pattern")
    assert list(shown.index) == ["snap64x16", "D1"]  # 128 entries find less than 64
    assert "Loss" not in shown
    assert pareto.figure(frame).axes


def test_masks_know_the_patterns_within_maps(sweep):
    rows = [Pattern.from_label(label) for label in ("top4x16", "D64-top4x16", "D16", "D1")]
    sweep.add("ratplus_tiny", PatternMap.per_head(rows, 4), sweep.results(1.7))
    assert [pattern.label for pattern in masks.patterns(load_sweep(sweep.write()))] == [
        "D1", "D16", "D64-top4x16", "top4x16",
    ]  # fmt: skip


def test_hits_and_masks_of_real_rows(sweep, caplog, stored):
    for label in ("D1", "top4x16", "quest4x16"):
        cell = sweep.add("ratplus_tiny", Pattern.from_label(label), sweep.results(1.7))
        if label != "D1":
            path = sweep.path / "evaluate" / cell["id"] / "selection.json"
            path.write_text(json.dumps(stored(label, 0.2)))
    frame = load_sweep(sweep.write())
    rows = selection_hits.table(frame)
    assert len(rows) == 2 * 16
    shown = selection_hits.summary(rows)
    assert shown.loc[0].tolist() == ["ratplus_tiny", "top-k", "top4x16", "recall", "36.5", "53.0", "3, 3"]
    drawing = selection_hits.figure(frame, rows)
    assert [axes.get_title() for axes in drawing.axes[:2]] == ["top4x16", "quest4x16"]
    written = [text.get_text() for text in drawing.axes[0].texts]
    assert len(written) == 16
    assert all(text.isdecimal() for text in written)  # whole percent: a field has no room for more
    titles = [axes.get_title() for axes in masks.figure(frame).axes if axes.get_title()]
    assert titles == ["D1", "quest4x16", "top4x16"]
    path.write_text(json.dumps(stored("quest4x16", 0.2) | {"format": 9}))
    assert len(selection_hits.table(frame)) == 16
    assert "selection.json is left out (format 9)" in caplog.text
    assert [axes.get_title() for axes in masks.figure(frame).axes if axes.get_title()] == ["D1", "top4x16"]


def test_what_a_model_has_not_is_an_empty_field_among_drawn_ones(sweep, stored):
    """The first model lacks the last pattern, the second the first one."""
    for model, labels in (
        ("attention_tiny", ("top4x16", "quest4x16")),
        ("ratplus_tiny", ("top8x16", "quest4x16")),
    ):
        for label in labels:
            cell = sweep.add(model, Pattern.from_label(label), sweep.results(1.7))
            path = sweep.path / "evaluate" / cell["id"] / "selection.json"
            path.write_text(json.dumps(stored(label, 0.2)))
    fields = selection_hits.figure(load_sweep(sweep.write())).axes[:6]
    assert [bool(axes.images) for axes in fields] == [True, True, False, False, True, True]
    # Each pattern has its name on the first field that is drawn.
    assert [axes.get_title() for axes in fields] == ["top4x16", "quest4x16", "", "", "", "top8x16"]


def test_a_selection_that_nobody_measured_is_not_drawn(sweep):
    sweep.add("ratplus_tiny", Pattern.from_label("top4x16"), sweep.results(1.7))
    frame = load_sweep(sweep.write())
    assert not selection_hits.applies(frame)
    assert len(masks.contents(frame)) == 1
    with pytest.raises(ValueError, match="no finished cell says what its pattern selected"):
        masks.figure(frame)


def test_only_where_a_pattern_selects(demo):
    frame = load_sweep(demo)
    assert not accuracy_vs_budget.applies(frame)
    assert "frontier_read" not in pareto.table(frame)
    assert "KV read" not in accuracy_vs_dilation.summary(frame)
    with pytest.raises(ValueError, match="no pattern of the sweep selects by query"):
        accuracy_vs_budget.contents(frame)
