"""What has no room: each bound of a figure or table at its edge, where nothing is left out, and one beyond it."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure
from seen import check
from small_sweeps import frame_of, pattern_of, results

from ratplus.analysis import (
    ablation,
    accuracy_vs_dilation,
    adaptation_curves,
    compare,
    masks,
    niah_depth,
    pareto,
    pattern_tables,
    positions,
    scaling_gap,
    sensitivity,
)
from ratplus.analysis.draw import style
from ratplus.analysis.draw.tables import to_markdown
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits
from ratplus.pattern import Pattern

pytestmark = pytest.mark.usefixtures("quick")


def last_entry(figure: Figure) -> str:
    """The last words of the legend, on one line; empty if there is none."""
    texts = [" ".join(text.get_text().split()) for legend in figure.legends for text in legend.get_texts()]
    return texts[-1] if texts else ""


def left_out_of(figure: Figure) -> str:
    return last_entry(figure) if "; all: see" in last_entry(figure) or " of " in last_entry(figure) else ""


POSITIONS = {"loss_at_0_256": (2.0, 0.1), "loss_at_256_512": (2.0, 0.1)}
NEEDLES = {"niah_single_1_substring_0_20": (0.5, 0.1)}


@pytest.mark.parametrize(
    ("module", "most", "found"),
    [
        (accuracy_vs_dilation, 8, results(2.0)), (pareto, 5, results(2.0)), (niah_depth, 4, NEEDLES),
        (positions, 8, POSITIONS), (adaptation_curves, 4, results(2.0)),
    ],
    ids=lambda part: getattr(part, "NAME", ""),
)  # fmt: skip
def test_models_of_a_figure(sweep, module, most, found):
    curve = [(1, 100, 2.0), (2, 200, 1.0)]
    for number in range(most):
        sweep.add(f"m{number}", Pattern(4), found, curve=curve)
    whole = module.figure(frame_of(sweep))
    assert left_out_of(whole) == ""
    sweep.add("one_more", Pattern(4), found, curve=curve)
    figure = module.figure(frame_of(sweep))
    assert left_out_of(figure) == f"{most} of {most + 1} models and variants; all: see table"
    names = [text.get_text() for text in figure.legends[0].get_texts()] + [a.get_title() for a in figure.axes]
    assert not any("one_more" in name for name in names)
    assert len(figure.axes) == len(whole.axes)


@pytest.mark.parametrize(
    ("module", "most", "found", "sizes"),
    [
        (niah_depth, 14, NEEDLES, (1e6,)), (positions, 3, POSITIONS, (1e6,)),
        (adaptation_curves, 12, results(2.0), (1e6,)), (scaling_gap, 8, results(2.0), (1e6, 4e6)),
    ],
    ids=lambda part: getattr(part, "NAME", ""),
)  # fmt: skip
def test_patterns_of_a_figure(sweep, module, most, found, sizes):
    def add(window: int) -> None:
        for size in sizes:
            label = Pattern(4, window) if window else Pattern(1)
            sweep.add(f"m{size:g}", label, found, curve=[(1, 100, 2.0), (2, 200, 1.0)], parameters=size)

    dense = 1 if module is scaling_gap else 0  # of which there is no gap
    for window in range(1 - dense, most + 1):
        add(window)
    assert left_out_of(module.figure(frame_of(sweep))) == ""
    add(most + 1)
    assert left_out_of(module.figure(frame_of(sweep))) == f"{most} of {most + 1} patterns; all: see table"


def test_of_models_and_patterns_that_are_left_out_both_are_told(sweep):
    for number in range(5):
        for window in range(15):
            sweep.add(f"m{number}", Pattern(4, window), NEEDLES)
    told = "4 of 5 models and variants; all: see table; 14 of 15 patterns; all: see table"
    assert left_out_of(niah_depth.figure(frame_of(sweep))) == told


def test_one_model_with_more_patterns_than_there_is_room_for(sweep):
    sweep.add("a", Pattern(4), NEEDLES)
    for window in range(15):
        sweep.add("b", Pattern(4, window), NEEDLES)
    figure = niah_depth.figure(frame_of(sweep))
    assert left_out_of(figure) == "14 of 15 patterns; all: see table"
    legend = figure.legends[0].get_window_extent().height / figure.dpi
    assert figure.get_figheight() - legend == pytest.approx(0.22 * 14 + 0.75)


def test_a_window_is_named_beside_hybrids_also_where_there_is_one(sweep):
    sweep.add("m", Pattern(4), results(2.0))
    names = [text.get_text() for text in accuracy_vs_dilation.figure(frame_of(sweep)).legends[0].get_texts()]
    assert names == ["m"]
    sweep.add("m", pattern_of("layers 1 64 64 1"), results(2.0))
    names = [text.get_text() for text in accuracy_vs_dilation.figure(frame_of(sweep)).legends[0].get_texts()]
    assert names == ["m", "$W$ = 0", "H1: layers[D1,D64x2,D1]"]


def test_lines_of_an_ablation(sweep):
    for length in range(1, 12):
        if length == 11:
            assert left_out_of(ablation.figure(frame_of(sweep))) == ""
        for dilation in (1, 16):
            sweep.add("m", Pattern(dilation), results(2.0), axes={"train.pretrain.arl_dilation": length})
    figure = ablation.figure(frame_of(sweep))
    assert left_out_of(figure) == "10 of 11 combinations; all: see table"
    assert len(figure.legends[0].get_texts()) == 11


@pytest.mark.parametrize(("count", "dashed"), [(5, True), (6, False)])
def test_up_to_five_models_have_colours_of_their_own_and_more_are_an_order(sweep, count, dashed):
    for number in range(count):
        sweep.add(f"m{number}", Pattern(4), results(2.0), axes={"train.pretrain.arl_dilation": number + 1})
    for module in (accuracy_vs_dilation, ablation):
        colours = [handle.get_color() for handle in module.figure(frame_of(sweep)).legends[0].legend_handles]
        assert (colours[0] == "#004488") == dashed
        assert len(set(colours[:count])) == count


def test_heat_maps_of_single_places(sweep):
    for odd in (2, 4, 8, 16):
        for head in (0, 2):
            sweep.add(
                "m", pattern_of("heads " + " ".join(str(odd if i == head else 1) for i in range(4))), results(2.0)
            )
    figure = sensitivity.figure(frame_of(sweep))
    assert (left_out_of(figure), len([axes for axes in figure.axes if axes.images])) == ("", 4)


def test_errors_below_a_table(sweep):
    for dilation in range(1, 11):
        sweep.add("m", Pattern(dilation), status="failed", message=f"{dilation}: " + "x" * 300)
    notes = accuracy_vs_dilation.notes(frame_of(sweep))
    assert notes[-1] == f"m D10 (seed 0) failed: {('RuntimeError: 10: ' + 'x' * 300)[:199]}…"
    sweep.add("m", Pattern(11), status="failed")
    notes = accuracy_vs_dilation.notes(frame_of(sweep))
    assert notes[-1] == "1 more errors: see the CSV file."
    assert [note.split(" (")[0] for note in notes[-11:-1]] == [f"m D{dilation}" for dilation in range(1, 11)]
    assert accuracy_vs_dilation._shortened("x" * 5, 5) == "x" * 5
    assert accuracy_vs_dilation._shortened("x" * 6, 5) == "xxxx…"


def test_pictures_of_masks(sweep):
    for dilation in range(1, 13):
        sweep.add("m", Pattern(dilation), results(2.0))
    figure = masks.figure(frame_of(sweep))
    assert (len([a for a in figure.axes if a.images]), figure.get_supxlabel()) == (12, "Key position")
    sweep.add("m", Pattern(13), results(2.0))
    figure = masks.figure(frame_of(sweep))
    assert figure.get_supxlabel() == "Key position (first 12 of 13 patterns)"


@pytest.mark.parametrize(
    ("count", "shape", "width"),
    [(1, (1, 1), 3.25), (2, (1, 2), 3.25), (3, (1, 3), 6.75), (4, (1, 4), 6.75), (5, (2, 4), 6.75)],
)
def test_masks_stand_side_by_side(sweep, count, shape, width):
    for dilation in range(1, count + 1):
        sweep.add("m", Pattern(dilation), results(2.0))
    figure = masks.figure(frame_of(sweep))
    grid = figure.axes[0].get_gridspec()
    assert ((grid.nrows, grid.ncols), figure.get_figwidth()) == (shape, width)


@pytest.mark.parametrize(
    ("label", "context", "length"),
    [
        ("D1", 512, 64), ("D32", 512, 64), ("D33", 512, 128), ("D4-W42", 512, 64), ("D4-W43-I1", 512, 128),
        ("stream-W42-I1", 512, 64), ("stream-W42-I2", 512, 128), ("D200", 512, 256), ("D1", 48, 48), ("D32", 100, 64),
        ("top2x16", 512, 64), ("top3x16", 512, 128), ("snap32x16", 512, 64), ("snap33x16", 512, 128),
    ],
)  # fmt: skip
def test_the_length_of_a_mask_has_room_for_what_its_pattern_sees(label, context, length):
    assert masks._length([Pattern.from_label(label)], context) == length
    assert masks._length([Pattern(), Pattern.from_label(label), Pattern(2)], context) == length


# ---- tables of tasks ----


def tasks_table(sweep, metrics: dict, suite: str, **attrs) -> pd.DataFrame:
    for dilation in (1, 4):
        sweep.add("m", Pattern(dilation), metrics)
    return pattern_tables.summary(frame_of(sweep, **attrs), suite)


@pytest.mark.parametrize(("count", "errors"), [(5, True), (6, False)])
def test_errors_of_up_to_five_tasks_are_shown(sweep, count, errors):
    shown = tasks_table(sweep, {f"longbench_t{i}/score": (0.5, 0.1) for i in range(count)}, "longbench")
    assert ("±" in shown["t0 (%)"][0]) == errors
    assert "±" in shown["Average (%)"][0]


@pytest.mark.parametrize(("count", "deltas"), [(3, 3), (4, 0)])
def test_differences_of_up_to_three_tasks_without_an_average_are_shown(sweep, count, deltas):
    shown = tasks_table(sweep, {f"t{i}/score": (3.5, 0.1) for i in range(count)}, "other")
    assert [name for name in shown if name.startswith("Δ")] == [f"Δ t{i}" for i in range(deltas)]
    assert list(shown["t0"]) == ["3.50 ± 0.10", "3.50 ± 0.10"]


def test_of_more_than_twelve_tasks_each_stands_once_and_whole(sweep):
    metrics = {f"longbench_t{i:02d}/score": 0.5 for i in range(12)} | {"longbench_t00/f1": 0.25}
    many = tasks_table(sweep, metrics, "longbench")
    assert [name for name in many if name.startswith("t")] == [f"t{i:02d} (%)" for i in range(12)]
    few = {name: value for name, value in metrics.items() if "11" not in name}
    other = type(sweep)(sweep.path.parent / "few")
    shown = tasks_table(other, few, "longbench")
    assert list(shown)[2:5] == ["t00 f1 (%)", "t00 score (%)", "t01 (%)"]


def test_a_suite_of_a_total_alone_has_a_table(sweep):
    for dilation in (1, 4):
        sweep.add("m", Pattern(dilation), {"cloze_accuracy": (0.5, 0.125)})
    (table,) = pattern_tables.contents(frame_of(sweep))
    assert table.shown.to_dict("list") == {
        "Model": ["m", "m"], "Pattern": ["D1", "D4"], "All (%)": ["50.0 ± 12.5"] * 2, "Δ all": ["0.0"] * 2,
    }  # fmt: skip


def test_seen_of_tasks_beside_the_papers(sweep):
    for seed in (0, 1):
        for dilation, gap in ((1, 0.0), (16, 0.125)):
            found = {
                "piqa/acc": (0.75 - gap, 0.1),
                "hellaswag/acc": (0.5, 0.1),
                "wikitext/perplexity": (8.0 + gap, 0.5),
            }
            found |= {"niah_single_1_substring": (0.5 - gap - seed / 8, 0.1), "my_task/error": (2.5 + gap + seed, 0.1)}
            found |= {f"other_{i}/score": (2.5 + seed, 0.1) for i in range(3)}
            sweep.add("ratplus_tiny", Pattern(dilation), found, seed=seed)
    made = pattern_tables.contents(frame_of(sweep, reference="paper"))
    check("paper", *(to_markdown(table) for table in made))


def test_seen_of_models_without_attention(sweep):
    for model, mixer, losses in (("mamba2_tiny", "mamba2", (2.25,)), ("ratplus_tiny", None, (2.0, 2.5))):
        for label, loss in zip(("D1", "D16"), losses):
            sweep.add(model, pattern_of(label), results(loss, 0.5), mixer=mixer)
    frame = frame_of(sweep)
    made = [
        part for module in (accuracy_vs_dilation, pareto, masks, pattern_tables) for part in module.contents(frame)[:1]
    ]
    check("mixers", *(to_markdown(table) for table in made), pareto.figure(frame))


def test_seen_of_shared_heads_and_times(sweep):
    for kv_heads, model in ((4, "m"), (2, "gqa"), (1, "mqa")):
        for label, loss in (("D1", 2.0), ("D16", 2.5)):
            sweep.add(model, pattern_of(label), results(loss + 1 / kv_heads / 8), kv_heads=kv_heads,
                      timing={"decode_ms_per_token": kv_heads / (2 if label == "D16" else 1)})  # fmt: skip
    frame = frame_of(sweep)
    check("shared_heads", *pareto.contents(frame))


def test_more_than_five_models_of_a_comparison():
    rows = pd.DataFrame({
        "run_a": [f"m{n}" for n in range(6)], "metric": "loss", "pattern": "D4", "pattern_name": "", "kind": "dilated",
        "dilation": pd.array([4] * 6, dtype="Int64"), "difference": 0.5, "low": 0.25, "high": 1.0,
    })  # fmt: skip
    assert left_out_of(compare.figure(rows[:5], "a", "b")) == ""
    assert left_out_of(compare.figure(rows, "a", "b")) == "5 of 6 models and variants; all: see table"


def test_seen_of_many_methods_and_results(sweep):
    """More than nine methods and three results: what is left out is told."""
    labels = ["D1", "D64", "stream-W60", "top4x16", "quest4x16", "random4x16", "snap64x16"]
    labels += [f"D{dilation}-top4x16" for dilation in (8, 16, 32, 64)]
    for label in labels:
        found = {name: (0.5, 0.1) for name in ("recall_accuracy", "cloze_accuracy", "a/acc")} | {"loss": (2.0, 0.1)}
        sweep.add("ratplus_tiny", pattern_of(label), found)
    figure = accuracy_vs_budget.figure(frame_of(sweep))
    assert last_entry(figure) == "9 of 10 methods; all: see table; 3 of 4 results; all: see table"
    assert [axes.get_ylabel() for axes in figure.axes] == ["Recall (%)", "A (%)", "Cloze (%)"]
    shown = accuracy_vs_budget.summary(frame_of(sweep))
    assert [name for name in shown if name.startswith("Δ")] == [], "of more than three results no differences"


def test_heat_maps_of_hits(sweep):
    def add(model: str, label: str) -> None:
        cell = sweep.add(model, pattern_of(label), results(2.0))
        plain = {"format": 1, "hit_rate": {"recall": [[0.5, 0.25]]}, "masks": {}}
        (sweep.path / "evaluate" / cell["id"] / "selection.json").write_text(json.dumps(plain))

    add("a", "top2x16")
    add("a", "top3x16")
    assert selection_hits.figure(frame_of(sweep)).get_figwidth() == style.COLUMN_WIDTH_IN
    add("a", "top4x16")
    assert selection_hits.figure(frame_of(sweep)).get_figwidth() == style.TEXT_WIDTH_IN
    for count in range(5, 8):
        add("a", f"top{count}x16")
    for model in ("b", "c"):
        add(model, "top2x16")
    figure = selection_hits.figure(frame_of(sweep))
    assert (left_out_of(figure), len([axes for axes in figure.axes if axes.images])) == ("", 8)
    add("a", "top8x16")
    add("d", "top2x16")
    told = "3 of 4 models and variants; all: see table; 6 of 7 patterns; all: see table"
    assert left_out_of(selection_hits.figure(frame_of(sweep))) == told
