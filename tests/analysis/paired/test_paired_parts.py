"""Comparisons at their edges: what is not asked alike, what no error is known of, and how rows of other seeds pair."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from small_sweeps import frame_of, results, with_items

from ratplus.analysis import compare
from ratplus.analysis.frame.aggregate import in_order
from ratplus.analysis.frame.load import load_sweep, read_sweep
from ratplus.analysis.paired.best import _how, choose, shown_value
from ratplus.analysis.paired.cells import compare_cells
from ratplus.analysis.paired.differences import Differences, _adjust, differences_of, with_differences
from ratplus.analysis.paired.samples import _Asked, asked, read_items
from ratplus.analysis.paired.several import names_of, number_named, result_named, same_items
from ratplus.analysis.paired.ties import Stored, difference_notes
from ratplus.pattern import Pattern
from ratplus.records.record import write_record
from ratplus.records.samples import write_samples

pytestmark = pytest.mark.usefixtures("quick")


def with_prompts(sweep, cell: dict, prompts: dict[str, str]) -> None:
    """Say in the cell's record which prompts its tasks had."""
    own = sweep.path / "evaluate" / cell["id"]
    record = json.loads((own / "record.json").read_text())
    body = {key: record[key] for key in ("stage", "config", "parent", "status", "metrics", "timing")}
    write_record(own, **body, provenance={"tasks": {task: {"prompts_sha256": sha} for task, sha in prompts.items()}})


# ---- differences within a sweep ----


def test_one_pattern_with_a_number_is_not_the_best_of_any(sweep):
    for dilation, recall in ((1, 0.9), (2, 0.5), (4, math.nan)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": 2.0, "recall_accuracy": recall})
    frame = frame_of(sweep)
    assert not with_differences(frame, ["recall_accuracy"])["recall_accuracy_best"].any()
    sweep.add("ratplus_tiny", Pattern(8), {"loss": 2.0, "recall_accuracy": 0.25})
    cells = with_differences(frame_of(sweep), ["recall_accuracy"]).set_index("pattern")["recall_accuracy_best"]
    assert cells.to_dict() == {"D1": False, "D2": True, "D4": False, "D8": False}


def test_a_pattern_with_fewer_seeds_is_not_the_best_and_needs_three_seeds_to_be_told(sweep):
    for seed in range(3):
        sweep.add("ratplus_tiny", Pattern(2), results(2.0 + seed / 8), seed=seed)
        sweep.add("ratplus_tiny", Pattern(4), results(2.25 + seed / 8 + (seed == 1) / 2), seed=seed)
        if seed < 2:
            sweep.add("ratplus_tiny", Pattern(8), results(1.0 + seed / 2), seed=seed)
    rows = differences_of(frame_of(sweep)).rows["loss"]
    assert {key[2]: (row["best"], row["tied_seeds"]) for key, row in rows.items()} == {
        "D2": (True, False), "D4": (False, True),
    }  # fmt: skip


def test_at_the_level_itself_nothing_is_certain():
    found = Differences()
    one, few = ("m", "", "D4"), {"few": 3}
    told = {
        "loss": {"of_best": 0.05, **few}, "em": {"of_best": 0.0499, **few}, "f1": {"of_seeds": 0.05},
        "acc": {"of_best": 0.5, "of_seeds": 0.5, "few": 0},
    }  # fmt: skip
    _adjust(found, {name: {one: row} for name, row in told.items()})
    marks = {name: (rows[one]["tied"], rows[one]["tied_seeds"]) for name, rows in found.rows.items()}
    assert marks == {"loss": (True, False), "em": (False, False), "f1": (False, True), "acc": (True, False)}
    assert found.few == {"loss": 3}
    rows = pd.DataFrame({
        "run_a": "m", "run_b": "m", "pattern": ["D1", "D4", "D8"], "pattern_name": "", "metric": "loss", "a": 1.0,
        "b": 2.0, "difference": 1.0, "stderr": 0.5, "p_holm": [0.05, 0.0499, math.nan],
    })  # fmt: skip
    assert list(compare.summary(rows)["Δ Loss"]) == ["1.000 ± 0.500", "**1.000 ± 0.500**", "1.000 ± 0.500"]


@pytest.mark.parametrize("other", ["prompts", "items", "weights", "value"])
def test_items_of_a_baseline_that_do_not_pair_give_no_error(sweep, other):
    for number, dilation in enumerate((1, 4)):
        odd = bool(number)
        values = [0.0, 1.0, 1.0, 0.0] + [1.0] * (odd and other == "items")
        weight = {"count": 1 + (odd and other == "weights")}
        told = sum(values) / len(values) + (odd and other == "value") / 4
        cell = sweep.add("ratplus_tiny", Pattern(dilation), {"piqa_acc": (told, 0.1)})
        with_prompts(sweep, cell, {"piqa": str(odd and other == "prompts")})
        rows = [{"task": "piqa", "id": i, "acc": value} | weight for i, value in enumerate(values)]
        write_samples(sweep.path / "evaluate" / cell["id"], rows)
    found = differences_of(frame_of(sweep))
    assert found.cells.get("piqa_acc", {}) == {}
    assert found.odd == ({"piqa_acc"} if other == "value" else set())


def test_a_seed_without_a_baseline_leaves_no_error_of_the_mean(sweep):
    for seed in (0, 1):
        with_items(sweep, "ratplus_tiny", "D4", 0.25, 0.0625, seed=seed)
    with_items(sweep, "ratplus_tiny", "D1", 0.0, seed=1)
    found = differences_of(frame_of(sweep))
    errors = {cell["seed"]: found.cells["loss"].get(cell["id"]) for cell in sweep.cells if cell["label"] == "D4"}
    assert (errors[0], errors[1]) == (None, pytest.approx(0.0625 / 4, rel=0.05))
    assert all(math.isnan(row["pm"]) for row in found.rows.get("loss", {}).values())


def test_what_was_computed_of_a_frame_is_kept_whatever_its_order_and_of_four_frames(sweep):
    sweep.add("ratplus_tiny", Pattern(1), results(2.0))
    sweep.add("ratplus_tiny", Pattern(4), results(2.5))
    frame = frame_of(sweep)
    first = differences_of(frame)
    assert differences_of(in_order(frame[::-1])) is first
    frame.attrs["baseline"] = "D4"
    assert differences_of(frame) is not first
    assert differences_of(frame[:1]) is not first
    frame.attrs["baseline"] = None
    assert differences_of(frame) is first
    for _ in range(4):
        differences_of(frame_of(sweep))
    assert differences_of(frame) is not first
    del frame.attrs["loaded"]
    assert differences_of(frame) is not differences_of(frame)


# ---- two sweeps ----


def test_one_seed_that_was_asked_other_prompts_leaves_a_result_out(sweep, tmp_path):
    other = type(sweep)(tmp_path / "other")
    for number, folder in enumerate((sweep, other)):
        for seed in (0, 1):
            cell = folder.add("ratplus_tiny", Pattern(4), {"loss": (2.0, 0.1), "piqa_acc": (0.5, 0.1)}, seed=seed)
            with_prompts(folder, cell, {"piqa": "x" if seed or not number else "y"})
    two = compare.Two(read_sweep(sweep.write()), read_sweep(other.write()))
    assert (list(two.rows["metric"]), two.rows.attrs["refused"]) == (["loss"], ["piqa_acc"])
    paths = compare.compare(sweep.path, other.path, tmp_path / "there", two)
    assert {path.parent for path in paths} == {tmp_path / "there"}
    assert "piqa_acc: not compared where prompts or data are different." in paths[0].read_text()


def test_sweeps_that_differ_in_all_they_were_asked_or_have_nothing_finished_are_refused(sweep, tmp_path):
    other = type(sweep)(tmp_path / "other")
    for number, folder in enumerate((sweep, other)):
        cell = folder.add("ratplus_tiny", Pattern(4), {"piqa_acc": (0.5, 0.1)})
        with_prompts(folder, cell, {"piqa": str(number)})
    with pytest.raises(ValueError, match=r"other: every result \(piqa_acc\) was measured on different prompts or data"):
        compare.compare(sweep.write(), other.write())
    third = type(sweep)(tmp_path / "third")
    third.add("ratplus_tiny", Pattern(4), status="failed")
    with pytest.raises(ValueError, match="third: no cell that both sweeps have is finished in both"):
        compare.compare(sweep.path, third.write())


@pytest.mark.parametrize(("ours", "theirs"), [(("a", "b"), ("c",)), (("a",), ("b", "c"))])
def test_other_models_are_compared_where_each_sweep_has_one(sweep, tmp_path, ours, theirs):
    other = type(sweep)(tmp_path / "other")
    for folder, models in ((sweep, ours), (other, theirs)):
        for model in models:
            folder.add(model, Pattern(4), results(2.0))
    frames = [load_sweep(folder.write()) for folder in (sweep, other)]
    with pytest.raises(ValueError, match=rf"no model in common \({', '.join(ours)} and {', '.join(theirs)}\)"):
        compare.join(*frames)
    assert len(compare.join(frames[0][:1], frames[1][:1])) == 1


def test_two_folders_of_one_name_are_called_by_their_parents_too(tmp_path):
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    assert compare._names(tmp_path / "a", tmp_path / "b" / "x") == ("a", "x")
    assert compare._names(tmp_path / "a" / "x", tmp_path / "b" / "x") == ("a/x", "b/x")
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b"]
    assert list(names_of(folders).values()) == ["a/x", "b/x", f"{tmp_path.name}/b"]
    assert list(names_of(folders[1:]).values()) == ["x", "b"]


# ---- cells of one sweep ----


def test_cells_that_stored_items_of_other_prompts_are_not_compared(sweep):
    for number, dilation in enumerate((1, 4)):
        cell = sweep.add("ratplus_tiny", Pattern(dilation), {"piqa_acc": (0.5, 0.1), "loss": (2.0, 0.1)})
        with_prompts(sweep, cell, {"piqa": str(number)})
        items = [{"task": "piqa", "id": i, "acc": float(i % 2)} for i in range(4)]
        write_samples(sweep.path / "evaluate" / cell["id"], items)
    found = compare_cells(sweep.write(), ["D1", "D4"])
    assert [row["metric"] for row in found.rows] == ["loss"]
    assert found.notes == ["piqa_acc: not compared, D1 and D4 were asked different prompts or data"]


def test_a_cell_is_named_with_others_of_its_pattern_in_other_models(sweep):
    cells = [sweep.add(model, Pattern(4), results(loss)) for model, loss in (("a", 2.0), ("b", 2.5))]
    rows = compare_cells(sweep.write(), [cell["id"] for cell in cells]).rows
    assert [(row["run"], row["metric"], row["difference"]) for row in rows] == [("a → b", "loss", 0.5)]


# ---- the best row ----


def test_rows_of_other_seeds_pair_by_their_means_errors(sweep):
    for dilation, seed, loss, error in ((1, 0, 2.0, 0.125), (4, 1, 2.25, 0.25), (16, 2, 2.5, 1.0)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, error)}, seed=seed)
    found = choose([sweep.write()], "loss")
    assert {row["pattern"]: (row["difference"], row["pm"]) for row in found["ties"]} == {
        "D4": (0.25, pytest.approx(math.hypot(0.125, 0.25))), "D16": (0.5, pytest.approx(math.hypot(0.125, 1.0))),
    }  # fmt: skip
    assert found["how"].startswith(
        "ties: p ≥ 0.05 after Holm's adjustment over all rows, from standard errors, unpaired"
    )


@pytest.mark.parametrize(("changes", "tied"), [((0.1, 0.5), ""), ((0.1, 0.5, 0.9), "seeds"), ((0.4, 0.5, 0.6), "")])
def test_over_two_seeds_nothing_is_said_of_ties(sweep, changes, tied):
    """Of two seeds t would tell hardly any difference apart, and what the items tell is certain."""
    for seed, change in enumerate(changes):
        for dilation, loss in ((1, 2.0), (4, 2.0 + change)):
            sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 1e-6)}, seed=seed)
    assert [row["tied"] for row in choose([sweep.write()], "loss")["ties"]] == ([tied] if tied else [])


def test_values_of_a_choice_are_shown_in_their_unit():
    row = {"value": 0.5, "stderr": 0.25, "difference": -0.125, "pm": math.nan}
    assert shown_value(row, "%") == "50.0 ± 25.0"
    assert shown_value(row, "") == "0.500 ± 0.250"
    assert shown_value(row, "%", "difference", "pm") == "−12.5"


def test_what_a_choice_rests_on():
    def row(method, p):
        return {"method": method, "p": p}

    items, errors = row("paired bootstrap", 0.5), row("standard errors", 0.5)
    assert _how([], "seeds") == ""
    assert _how([row("standard errors", math.nan)], "") == "no errors are known, so nothing is said about ties"
    start = "ties: p ≥ 0.05 after Holm's adjustment over all rows, "
    assert _how([items], "s") == f"{start}paired item by item; s"
    assert _how([items, errors], "").endswith(", by standard errors where there are no samples of the same items")
    assert _how([errors], "") == f"{start}from standard errors, unpaired (no samples of the same items)"


def test_the_words_of_a_choice(sweep):
    for dilation, loss in ((1, 2.0), (4, 2.5), (16, 2.5625)):
        sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (loss, 0.0625), "recall_accuracy": (loss / 4, 0.001)})
    folder = sweep.write()
    assert choose([folder], "loss")["why"] == "the lowest loss of 3 rows; no other ties with it"
    assert choose([folder], "loss", {"kv_ratio": 0.25})["why"] == (
        "the lowest loss of 2 rows with kv_ratio ≤ 0.25; one other ties with it"
    )
    only = choose([folder], "loss", {"kv_ratio": 0.25}, {"kv_entries": 33})
    assert (only["why"], only["how"]) == (
        "the lowest loss of 1 row with kv_ratio ≤ 0.25 and kv_entries ≥ 33; no other ties with it", "",
    )  # fmt: skip
    recall = choose([folder], "recall")
    assert (recall["unit"], recall["lower"], recall["winner"]["pattern"]) == ("%", False, "D16")
    cheap = choose([folder], "loss", {"kv_ratio": 0.25}, tie="cheapest")
    assert cheap["why"] == (
        "the cheapest (kv_ratio) of 2 rows that cannot be told from the lowest loss of 2 rows with kv_ratio ≤ 0.25, "
        "which is ratplus_tiny D4 with 2.500 ± 0.062"
    )
    cheap = choose([folder], "loss", least={"kv_entries": 1}, where="dilation > 1", tie="cheapest")
    assert cheap["why"].startswith("the cheapest (kv_read) of 2 rows"), "what is to be had at least is no cost"
    with pytest.raises(ValueError, match="--where: no cell meets 'dilation > 99'"):
        choose([folder], "loss", where="dilation > 99")


# ---- names ----


@pytest.fixture
def named() -> pd.DataFrame:
    frame = pd.DataFrame({
        "loss": [1.0], "recall_accuracy": [0.5], "metric:seed": [1.0], "timing:decode_ms": [2.0],
        "timing:decode_tokens": [2.0], "gone": [math.nan], "seed": [3], "recurrence": [True], "pattern": ["D1"],
        "status": ["done"], "error": [""],
    })  # fmt: skip
    frame.attrs["metrics"] = ["loss", "recall_accuracy", "metric:seed", "gone"]
    return frame


@pytest.mark.parametrize(
    ("name", "column"),
    [("loss", "loss"), ("lo", "loss"), ("seed", "metric:seed"), ("decode_ms", "timing:decode_ms"),
     ("decode_m", "timing:decode_ms"), ("timing:decode_ms", "timing:decode_ms"), ("recall", "recall_accuracy")],
)  # fmt: skip
def test_results_may_be_named_by_their_beginning(named, name, column):
    assert result_named(name, named, "--metric") == column


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("decode", "--metric: 'decode' may be timing:decode_ms, timing:decode_tokens; write the whole name"),
        ("gone", "--metric: no cell has a result 'gone'; "), ("los_s", "did you mean loss or decode_ms?"),
        ("zzz", "there are decode_ms, decode_tokens, loss, metric:seed, recall_accuracy"),
        ("", "--metric: no cell has a result ''; there are"),
    ],
)  # fmt: skip
def test_results_that_are_none(named, name, line):
    with pytest.raises(ValueError) as caught:
        result_named(name, named, "--metric")
    assert line in str(caught.value)


def test_columns_of_numbers(named):
    assert number_named("seed", named, "--max") == "seed"
    assert number_named("decode_ms", named, "--max") == "timing:decode_ms"
    for name in ("recurrence", "pattern"):
        with pytest.raises(ValueError, match=f"--max: there is no column of numbers '{name}'; "):
            number_named(name, named, "--max")


# ---- samples ----


@pytest.mark.parametrize("change", [{"config": []}, {"metrics": []}, None])
def test_a_record_of_another_shape_has_no_items(tmp_path, change):
    folder = tmp_path / "evaluate" / "a"
    folder.mkdir(parents=True)
    record = {"metrics": {"loss": {"value": 1.0}}, "config": {}}
    (folder / "record.json").write_text(json.dumps(record | change if change else []))
    write_samples(folder, [{"task": "loss", "id": 0, "loss": 1.0}])
    assert read_items(folder) == {}
    assert asked(tmp_path, ("a",), "loss") is None


def test_filters_of_a_task_have_metrics_of_their_own(tmp_path):
    """A metric that several filters share has items only if no id stands twice."""
    folder = tmp_path / "a"
    folder.mkdir()
    samples = [{"task": "gsm8k", "id": i, "exact_match": float(i % 2), "filter": chosen, "note": "text"}
               for chosen in ("strict", "loose") for i in range(4)]  # fmt: skip
    samples += [{"task": "piqa", "id": i, "acc": value} for i, value in enumerate((1, None, True, 0.5))]
    samples += [{"task": "loss", "id": 0, "loss": 2.0, "count": 0}]
    names = ("gsm8k_exact_match", "gsm8k_exact_match_strict", "gsm8k_note", "piqa_acc", "loss")
    values = (0.5, 0.5, 1.0, 0.75, 2.0)
    metrics = {name: {"value": value} for name, value in zip(names, values)}
    (folder / "record.json").write_text(json.dumps({"metrics": metrics, "config": {}}))
    write_samples(folder, samples)
    found = read_items(folder)
    assert sorted(found) == ["gsm8k_exact_match_strict", "piqa_acc"]
    assert found["gsm8k_exact_match_strict"].values.tolist() == [0, 1, 0, 1]
    assert (found["piqa_acc"].ids.tolist(), found["piqa_acc"].values.tolist()) == ([0, 3], [1.0, 0.5])
    assert found["piqa_acc"].whole


def test_what_an_unknown_metric_was_measured_on_is_all_settings():
    known = _Asked({"config": {"context": 8, "data": {"a": 1}, "eval": {"b": 2}}, "metrics": {}})
    assert known.of("gain") == '["gain",{"a":1},8,{"b":2}]'
    assert known.of("other") == '["other",{"a":1},8,{"b":2}]'
    assert _Asked({"config": {"context": 8}, "metrics": {}}).of("loss_at_0_8") == '["loss_at_0_8",null,8,null]'


def test_times_and_costs_are_measured_on_no_items(sweep):
    sweep.add("ratplus_tiny", Pattern(1), results(2.0))
    frame = load_sweep(sweep.write()).assign(folder=str(sweep.path), evaluations=[("a",)])
    assert list(same_items(frame, "timing:decode_ms")) == list(same_items(frame, "decode_kv_bytes")) == [""]
    assert list(same_items(frame, "loss")) == [None], "no record says what it was asked"


# ---- notes ----

NOT_TOLD = "~: cannot be told from the best sparse pattern of its model (bold) over the 3 seeds (Student's t, Holm)"


@pytest.mark.parametrize(
    ("sampled", "line"),
    [
        ({"x", "y"}, "~: can be told over the items, but not over the 3 seeds (Student's t, Holm)."),
        ({"x"}, f"{NOT_TOLD}; over the items it can, where they are stored."), (set(), f"{NOT_TOLD}."),
    ],
)  # fmt: skip
def test_the_line_on_ties_over_seeds(sampled, line):
    rows = pd.DataFrame({"done": [3, 1]} | {f"{name}_{end}": [True, False] for name in "xy"
                                            for end in ("best", "tied", "tied_seeds")})  # fmt: skip
    assert line in difference_notes(rows, {}, {"x": "X", "y": "Y"}, Stored(sampled, set()))


def test_lines_on_what_is_not_stored():
    rows = pd.DataFrame({"done": [1], "x_best": False, "y_best": False, "x_tied_seeds": False, "y_tied_seeds": False})
    titles = {"x": "X", "y": "Y"}
    none = "No ± over items and no ties over them: the evaluations stored no samples (samples.jsonl)."
    assert difference_notes(rows, {"x": "X"}, titles, Stored(set(), set())) == [none]
    assert difference_notes(rows, {"x": "X"}, {}, Stored(set(), set()), ties=False) == [
        "No ± over items: the evaluations stored no samples (samples.jsonl)."
    ]
    assert difference_notes(rows, {}, titles, Stored({"x"}, set())) == [
        "No samples, so no ± over items and no ties over them: Y."
    ]
    assert difference_notes(rows, {}, titles, Stored(set(), {"x"})) == [
        "No ± over items and no ties over them of X: the samples' mean is not the recorded result.",
        "No samples, so no ± over items and no ties over them: Y.",
    ]
    assert difference_notes(rows[:0], {}, {}, Stored(set(), set())) == []
