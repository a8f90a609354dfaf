"""The paragraph on top of a report, whole, of sweeps of every kind; and what a report refuses."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import pytest
from seen import check
from small_sweeps import add_selecting_pair, frame_of, pattern_of, results, with_items

from ratplus.analysis import (
    accuracy_vs_dilation,
    adaptation_curves,
    efficiency,
    masks,
    niah_depth,
    pareto,
    pattern_tables,
    positions,
    recurrence,
    scaling_gap,
    sensitivity,
)
from ratplus.analysis.page import notebook
from ratplus.analysis.page.page import _note
from ratplus.analysis.report import MODULES, TITLES, headline, report
from ratplus.analysis.selection import accuracy_vs_budget, selection_hits
from ratplus.pattern import Pattern

pytestmark = pytest.mark.usefixtures("quick")


def test_seen_of_headlines(folder_of_sweep, tmp_path):
    said = []

    def tell(name: str, *cells, **attrs) -> None:
        """Cells are (model, pattern, loss or status, recall, options)."""
        sweep = folder_of_sweep(tmp_path / name)
        for model, label, found, *rest in cells:
            recall, options = (*rest, None, {})[:2] if len(rest) < 2 else rest
            if isinstance(found, str):
                sweep.add(model, pattern_of(label), status=found, **(options or {}))
            else:
                sweep.add(model, pattern_of(label), results(found, recall), **(options or {}))
        frame = frame_of(sweep, **attrs)
        said.append(f"{name}: {headline(frame)}")

    pair = [("ratplus_tiny", "D1", 2.0), ("ratplus_tiny", "D16", 2.5, 0.5)]
    tell("attention first", ("attention_tiny", "D1", 2.0), ("attention_tiny", "D16", 1.75, 0.125), *pair)
    tell("a larger dilation of attention alone", ("attention_tiny", "D1", 2.0), ("attention_tiny", "D64", 3.0), *pair)
    tell("a window is not plain", *pair, ("ratplus_tiny", "D64-W64", 9.0), ("ratplus_tiny", "stream-W64", 9.0))
    tell("no dense cell", ("ratplus_tiny", "D16", 2.5))
    tell("equal", ("ratplus_tiny", "D1", 2.0), ("ratplus_tiny", "D16", 1.998))
    tell("infinite", *pair, ("ratplus_tiny", "D64", math.inf))
    many = [(f"m{n}", label, 2.0 + n * gap) for n in range(6) for label, gap in (("D1", 0.0), ("D16", 0.125))]
    tell("six models", *many)
    tell("five silent ones", *pair, *((f"m{n}", "D1", 2.0) for n in range(5)))
    tell("four silent ones", *pair, *((f"m{n}", "D1", 2.0) for n in range(4)))
    states = [("ratplus_tiny", "D2", "failed"), ("ratplus_tiny", "D4", "missing"), ("ratplus_tiny", "D8", "running")]
    tell("not finished", *pair, *states)
    tell("added", *pair, added={"b": {"missing": 3, "failed": 1, "done": 2}, "a": {"done": 2}, "c": {"running": 1}})
    tell("no cells")
    tell("another baseline", *pair, ("ratplus_tiny", "D4", 2.125), baseline="D4")
    tell("a baseline that has not finished", *pair, ("ratplus_tiny", "D4", "failed"), baseline="D4")
    sweep = folder_of_sweep(tmp_path / "items")
    for label, change, spread in (("D1", 0.0, 0.0), ("D64", 0.125, 0.03125)):
        with_items(sweep, "ratplus_tiny", label, change, spread)
        sweep.add("attention_tiny", pattern_of(label), results(2.0 + change))
    said.append(f"items of one: {headline(frame_of(sweep))}")
    (sweep.path / "evaluate" / sweep.cells[0]["id"] / "samples.jsonl").write_text("{")
    said.append(f"damaged items: {headline(frame_of(sweep))}")
    check("headlines", *said)


def test_a_baseline_that_no_finished_cell_has_is_one_line(sweep):
    sweep.add("ratplus_tiny", Pattern(4), results(2.0), pattern_name="quarter")
    sweep.add("ratplus_tiny", Pattern(16), status="failed")
    folder = sweep.write()
    for baseline, hint in (
        ("D16", "did you mean D16"), ("D44", "did you mean D4"), ("quarters", "did you mean quarter?"),
        ("zzz", "it has D4, D16"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            report(folder, baseline=baseline)
        assert str(caught.value).startswith(
            f"--baseline: the sweep has no finished cell of pattern {baseline!r}; {hint}"
        )
    with pytest.raises(ValueError, match="--reference: got 'papers'; allowed: paper"):
        report(folder, reference="papers")


def test_figures_name_the_baseline_of_their_differences(sweep):
    for model, parameters in (("ratplus_a", 1e6), ("ratplus_b", 4e6)):
        for label, loss in (("D1", 2.0), ("D4", 2.25), ("heads 4 1 1 1", 2.5), ("heads 1 4 1 1", 2.75)):
            sweep.add(model, pattern_of(label), results(loss), parameters=parameters)
    for baseline, name in ((None, "dense"), ("D4", "D4")):
        frame = frame_of(sweep, baseline=baseline)
        assert scaling_gap.figure(frame).axes[0].get_ylabel() == f"Sparse − {name} loss (nats)"
        assert sensitivity.figure(frame).axes[-1].get_ylabel() == f"Δ loss to {name} (nats)"


def test_models_of_different_contexts(sweep):
    """The longest decides what masks show; captions name all, the shorter one first."""
    for model, context in (("ratplus_tiny", 512), ("attention_tiny", 256)):
        for label in ("D1", "D4", "top4x16"):
            cell = sweep.add(model, pattern_of(label), results(2.0, 0.5))
            cell["config"]["train"] = {"context": context}
    frame = frame_of(sweep)
    assert set(masks.table(frame)["context"]) == {512}
    assert "before the step at position 512." in masks.contents(frame)[0].caption
    assert "before the step at position 256 or 512, mean over" in accuracy_vs_dilation.caption(frame)
    assert "before the step at position 256 or 512, mean over" in accuracy_vs_budget.caption(frame)
    assert "all at position 256 or 512. FLOPs" in _note(frame)
    assert "The pattern keeps 128 of 512 cache entries a head" in headline(frame), "of the model that is named first"


@pytest.mark.parametrize("module", [*MODULES, efficiency], ids=lambda module: module.NAME)
def test_a_module_runs_its_own_contents(module, monkeypatch):
    asked = []
    monkeypatch.setattr(notebook, "run", lambda *given, **options: asked.append((given, options)))
    monkeypatch.delitem(sys.modules, module.__name__)
    space = runpy.run_module(module.__name__, run_name="__main__")
    ((given, options),) = asked
    assert given == (space["contents"],)
    bench = {"read": Path, "variable": "RATPLUS_BENCH", "default": "outputs/bench",
             "what": "JSON file of `ratplus bench ... --json`, or a folder of them"}  # fmt: skip
    assert options == (bench if module is efficiency else {})


def test_a_task_without_a_whole_has_a_dash(sweep):
    for label in ("D1", "D4"):
        found = {"niah_single_1_substring_0_20": 0.5, "niah_single_1_substring": 0.5}
        sweep.add("m", pattern_of(label), found | {"niah_vt_substring_0_20": 0.25})
    shown = niah_depth.summary(frame_of(sweep))
    assert shown[["Pattern", "Task", "All (%)", "Δ all"]].to_numpy().tolist() == [
        ["D1", "single 1", "50.0", "0.0"], ["D1", "vt", "—", "—"], ["D4", "single 1", "50.0", "0.0"],
        ["D4", "vt", "—", "—"],
    ]  # fmt: skip


def test_no_module_applies_to_a_sweep_without_cells(sweep):
    frame = frame_of(sweep)
    assert [module.NAME for module in MODULES if module.applies(frame)] == []


def test_every_module_has_a_title_of_its_own():
    names = {module.NAME for module in MODULES}
    assert names - {"pattern_tables"} <= set(TITLES)
    assert len(set(TITLES.values())) == len(TITLES)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (accuracy_vs_budget, "no pattern of the sweep selects by query"),
        (adaptation_curves, "no adapt stage has left a curve"),
        (niah_depth, "no finished cell has NIAH accuracies by depth"),
        (pattern_tables, "no task results: none of the sweep's finished cells"),
        (positions, "no finished cell was evaluated by position"), (recurrence, "no cell has a gates.json; measure"),
        (scaling_gap, "no family has two sizes"), (selection_hits, "no finished cell has hit rates"),
        (sensitivity, "no model has finished cells with one sparse"),
    ],
    ids=lambda part: getattr(part, "NAME", ""),
)  # fmt: skip
def test_a_module_that_does_not_apply_says_why(sweep, module, line):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 2.0})
    with pytest.raises(ValueError, match=line):
        module.contents(frame_of(sweep))


def test_of_selecting_patterns_alone_there_is_a_table_and_a_line(sweep, caplog):
    add_selecting_pair(sweep)
    frame = frame_of(sweep)
    assert [type(part).__name__ for part in accuracy_vs_dilation.contents(frame)] == ["Table"]
    assert [record.message for record in caplog.records] == [
        "accuracy_vs_dilation: no figure: 2 of 2 cells finished, none with a finite loss and a pattern that does not "
        "select by query"
    ]
    said = accuracy_vs_budget.caption(frame)
    assert "depends on data. Bold: the best sparse pattern" in said, "nothing was measured, and no hits"
    assert recurrence.table(frame).empty
    assert list(recurrence.table(frame))[:4] == ["run", "pattern", "seed", "layer"]
    assert [type(part).__name__ for part in masks.contents(frame)] == ["Table"], "nothing says what was selected"
    with pytest.raises(ValueError, match="masks: no finished cell says what its pattern selected"):
        masks.figure(frame)
    with pytest.raises(ValueError, match="no figure"):
        accuracy_vs_dilation.figure(frame)


def test_figures_of_nothing_are_one_line(sweep):
    sweep.add("ratplus_tiny", Pattern(4), status="failed")
    frame = frame_of(sweep)
    for module, line in (
        (pareto, "pareto: no finished cell has a finite loss or another quality"), (niah_depth, "niah_depth: no"),
        (positions, "positions: no finished cell"), (recurrence, "recurrence: no cell has a gates.json"),
        (adaptation_curves, "adaptation_curves: no adapt"), (scaling_gap, "scaling_gap: no model has finished both"),
        (accuracy_vs_budget, "accuracy_vs_budget: no finished cell has a result"),
        (sensitivity, "sensitivity: no finished cell has exactly one"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            module.figure(frame)
