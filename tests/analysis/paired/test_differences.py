"""Differences within one sweep, worked by hand: ± over items, ties with the best, seeds apart from items."""

import json

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis import accuracy_vs_dilation, pattern_tables
from ratplus.analysis.frame.aggregate import in_order, over_seeds
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.paired.bootstrap import holm, normal_p, p_values, resampled_means, t_p
from ratplus.analysis.paired.differences import with_differences, with_row_errors
from ratplus.analysis.paired.ties import Stored, difference_notes
from ratplus.pattern import Pattern
from ratplus.records.record import write_record
from ratplus.records.samples import write_samples

HARD = np.linspace(1.0, 3.0, 16)  # how hard the items are: far more than what patterns change


def add(sweep, dilation, changes, *, seed=0, task="loss", stored=True, model="ratplus_tiny", **options):
    """A cell whose items are HARD with these changes, and whose record says their mean."""
    values = HARD[: len(changes)] + np.asarray(changes)
    metric = "loss" if task == "loss" else f"{task}_accuracy"
    metrics = {metric: (float(values.mean()), 0.1)}
    cell = sweep.add(model, Pattern(dilation), metrics, seed=seed, **options)
    name = "loss" if task == "loss" else "accuracy"
    if stored:
        items = [{"task": task, "id": i, name: float(value)} for i, value in enumerate(values)]
        write_samples(sweep.path / "evaluate" / cell["id"], items)
    return cell


def cells_of(sweep, names=("loss",), **attrs):
    frame = load_sweep(sweep.write())
    frame.attrs |= attrs
    return with_differences(frame, list(names)).set_index(["pattern", "seed"])


def test_the_error_of_a_difference_is_that_of_its_items(sweep):
    add(sweep, 1, [0.0] * 16)
    add(sweep, 2, [0.1, 0.3] * 8)
    cells = cells_of(sweep)
    d2 = cells.loc[("D2", 0)]
    assert d2["loss_delta"] == pytest.approx(0.2)
    # 0.1 or 0.3 with equal chances: a spread of 0.1, over the root of 16 items.
    assert d2["loss_delta_pm"] == pytest.approx(0.1 / 4, rel=0.05)
    assert d2["loss_delta_p"] == pytest.approx(2 / 2**16)  # all sixteen signs agree
    assert np.isnan(cells.loc[("D1", 0), "loss_delta_pm"])  # to itself


def test_few_items_cannot_be_certain(sweep):
    add(sweep, 1, [0.0] * 4)
    add(sweep, 2, [0.2] * 4)
    assert cells_of(sweep).loc[("D2", 0), "loss_delta_p"] == 2 / 2**4


def test_few_items_of_several_seeds_cannot_be_certain_either(sweep):
    """All seeds are asked the same four items, whichever of them differ in which seed."""
    for seed, changes in enumerate(([0.2, 0.2, 0.0, 0.0], [0.2] * 4, [0.0, 0.0, 0.2, 0.2])):
        add(sweep, 1, [0.0] * 4, seed=seed)
        add(sweep, 2, changes, seed=seed)
    frame = load_sweep(sweep.write())
    rows = with_row_errors(over_seeds(in_order(frame), ["loss"]), frame, ["loss"]).set_index("pattern")
    assert rows.loc["D2", "loss_delta_p"] == 2 / 2**4


@pytest.mark.parametrize("seeds", [1, 2])
def test_beyond_all_resamples_p_is_that_of_the_mean_difference(sweep, seeds):
    """Of seeds with the same items and changes it is that of one: five of its own standard errors from zero."""
    for seed in range(seeds):
        for dilation, changes in ((1, [0.0, 0.0]), (2, [-0.06, 0.26])):
            values = np.linspace(1.0, 3.0, 64) + np.array(changes * 32)
            cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (float(values.mean()), 0.1)}, seed=seed)
            items = [{"task": "loss", "id": i, "loss": float(value)} for i, value in enumerate(values)]
            write_samples(sweep.path / "evaluate" / cell["id"], items)
    frame = load_sweep(sweep.write())
    found = with_row_errors(over_seeds(in_order(frame), ["loss"]), frame, ["loss"]).set_index("pattern").loc["D2"]
    assert found["loss_delta_pm"] == pytest.approx(0.16 / 8, rel=0.05)
    assert found["loss_delta_p"] == pytest.approx(normal_p(0.1, found["loss_delta_pm"]), rel=1e-6)
    assert 1e-9 < found["loss_delta_p"] < 1e-5


def test_items_of_all_tasks_count_for_an_average(sweep):
    for dilation, change in ((1, 0.0), (2, 0.25)):
        metrics = {f"{task}_acc": (0.5 + change, 0.1) for task in ("piqa", "hellaswag")}
        cell = sweep.add("ratplus_tiny", Pattern(dilation), metrics)
        items = [{"task": t, "id": i, "acc": 0.5 + change} for t in ("piqa", "hellaswag") for i in range(4)]
        write_samples(sweep.path / "evaluate" / cell["id"], items)
    data = pattern_tables.contents(load_sweep(sweep.write()))[0].data.set_index("pattern")
    assert data.loc["D2", "piqa_acc_delta_p"] == 2 / 2**4
    assert data.loc["D2", "average_delta_p"] == 2 / 2**8


def test_the_error_of_an_average_is_that_of_the_mean_of_its_tasks(sweep):
    """Each task changes by 0.1 or 0.3, in items of its own: errors of 0.1 / 4 each, and of their mean 0.025 / √2."""
    for dilation, change in ((1, [0.0, 0.0]), (2, [0.1, 0.3])):
        values = {task: [0.5 + change[(i + len(task)) % 2] for i in range(16)] for task in ("piqa", "hellaswag")}
        cell = sweep.add("ratplus_tiny", Pattern(dilation), {f"{t}_acc": (sum(v) / 16, 0.1) for t, v in values.items()})
        items = [{"task": t, "id": i, "acc": value} for t, v in values.items() for i, value in enumerate(v)]
        # Other prompts of each task, so that the two are drawn apart.
        own = sweep.path / "evaluate" / cell["id"]
        record = json.loads((own / "record.json").read_text())
        body = {key: record[key] for key in ("stage", "config", "parent", "status", "metrics", "timing")}
        write_record(own, **body, provenance={"tasks": {task: {"prompts_sha256": task} for task in values}})
        write_samples(own, items)
    data = pattern_tables.contents(load_sweep(sweep.write()))[0].data.set_index("pattern")
    assert data.loc["D2", "piqa_acc_delta_pm"] == pytest.approx(0.025, rel=0.06)
    assert data.loc["D2", "average_delta_pm"] == pytest.approx(0.025 / 2**0.5, rel=0.06)
    assert data.loc["D2", "average_delta"] == pytest.approx(0.2)


def test_ties_with_the_best_sparse_pattern(sweep):
    add(sweep, 1, [0.0] * 16)  # dense: better than all, and not one of those to choose from
    add(sweep, 2, [0.10] * 16)
    add(sweep, 4, [0.10, 0.13, 0.08, 0.11] * 4)  # 0.005 worse, in some items better
    add(sweep, 8, [0.11, 0.12] * 8)  # 0.015 worse, in every item
    rows = cells_of(sweep)[["loss_best", "loss_tied", "loss_tied_seeds"]].droplevel("seed")
    assert rows.T.to_dict("list") == {
        "D1": [False, False, False],
        "D2": [True, False, False],
        "D4": [False, True, False],
        "D8": [False, False, False],
    }
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.path))
    shown = dict(zip(table.shown["Pattern"], zip(table.shown["Loss"], table.shown["Δ loss"])))
    assert shown["D2"] == ("**2.100 ± 0.100**", "0.100")
    assert shown["D4"] == ("2.105 ± 0.100 =", "0.105 ± 0.005")
    assert shown["D8"] == ("2.115 ± 0.100", "0.115 ± 0.001")
    notes = " ".join(table.notes)
    assert "± of Δ: over the evaluation's items (paired bootstrap, 2000 resamples)." in notes
    assert "=: cannot be told from the best sparse pattern" in notes
    assert "marks large differences too" not in notes


def test_holm_counts_all_patterns_of_a_result(sweep):
    """Seven items that all differ: p = 2 / 2^7 = 0.016 each, certain alone, not among four."""
    for others, certain in ((1, True), (4, False)):
        sweep.cells.clear()
        add(sweep, 2, [0.0] * 7)
        for number in range(others):
            add(sweep, 4 * 2**number, [0.1 + 0.01 * number] * 7)
        assert bool(cells_of(sweep).loc[("D4", 0), "loss_tied"]) is not certain
        (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.path))
        assert ("= marks large differences too: with no more than 7 items" in " ".join(table.notes)) is not certain


def test_the_most_items_that_were_too_few_are_told_whichever_model_has_them(sweep):
    for model, items in (("ratplus_tiny", 7), ("attention_tiny", 4)):
        add(sweep, 2, [0.0] * items, model=model)
        for number in range(4):
            add(sweep, 4 * 2**number, [0.1 + 0.01 * number] * items, model=model)
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.write()))
    assert "= marks large differences too: with no more than 7 items" in " ".join(table.notes)


@pytest.mark.parametrize(("alike", "too_few"), [(0, True), (12, False)])
def test_items_are_too_few_where_all_of_them_differ(sweep, alike, too_few):
    """Four items that differ are never certain; but where twelve more are alike, more items would not help."""
    add(sweep, 2, [0.0] * (4 + alike))
    add(sweep, 4, [0.1] * 4 + [0.0] * alike)
    assert cells_of(sweep).loc[("D4", 0), "loss_tied"]
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.path))
    assert ("= marks large differences too: with no more than 4 items" in " ".join(table.notes)) is too_few


def test_errors_over_items_and_over_seeds_are_kept_apart(sweep):
    changes = {0: 0.1, 1: 0.3, 2: 0.2}
    for seed, change in changes.items():
        add(sweep, 1, [0.0] * 16, seed=seed)
        add(sweep, 2, [change - 0.05, change + 0.05] * 8, seed=seed)
    frame = load_sweep(sweep.write())
    rows = over_seeds(with_differences(in_order(frame), ["loss"]), ["loss", "loss_delta"])
    d2 = with_row_errors(rows, frame, ["loss"]).set_index("pattern").loc["D2"]
    assert d2["loss_delta"] == pytest.approx(0.2)
    # The seeds are asked the same items, so three of them are no more items than one.
    assert d2["loss_delta_pm"] == pytest.approx(0.05 / 4, rel=0.05)
    assert d2["loss_delta_stderr"] == pytest.approx(0.1 / 3**0.5)
    (table, *_) = accuracy_vs_dilation.contents(frame)
    assert list(table.shown["Δ loss"]) == ["0.000", "0.200 ± 0.013 ± 0.058"]
    assert "the second ±: over 3 training seeds" in " ".join(table.notes)


def test_what_items_can_tell_and_seeds_cannot(sweep):
    for seed, change in enumerate((0.05, 0.3, -0.1)):
        add(sweep, 1, [0.0] * 16, seed=seed)
        add(sweep, 2, [0.1] * 16, seed=seed)
        add(sweep, 4, [0.1 + change, 0.1 + change + 0.01] * 8, seed=seed)
    row = cells_of(sweep).loc[("D4", 0)]
    assert (row["loss_best"], row["loss_tied"], row["loss_tied_seeds"]) == (False, False, True)
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.path))
    assert table.shown["Loss"].iloc[2].endswith(" ~")
    assert any(note.startswith("~: can be told over the items, but not over the 3 seeds") for note in table.notes)


def test_what_neither_items_nor_seeds_can_tell_is_marked_once(sweep):
    for seed, change in enumerate((0.02, -0.01, 0.01)):
        add(sweep, 2, [0.0] * 16, seed=seed)
        add(sweep, 4, [change - 0.3, change + 0.3] * 8, seed=seed)
    row = cells_of(sweep).loc[("D4", 0)]
    assert (row["loss_tied"], row["loss_tied_seeds"]) == (True, False)


def test_a_sweep_without_samples_says_so(sweep):
    add(sweep, 1, [0.0] * 16, stored=False)
    add(sweep, 2, [0.1] * 16, stored=False)
    add(sweep, 4, [0.2] * 16, stored=False)
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.write()))
    assert list(table.shown["Δ loss"]) == ["0.000", "0.100", "0.200"]
    assert "No ± over items and no ties over them: the evaluations stored no samples (samples.jsonl)." in table.notes
    assert not any("=" in text for text in table.shown["Loss"])


def test_of_results_without_samples_the_seeds_alone_tell(sweep):
    for seed, change in enumerate((0.05, 0.3, -0.1)):
        for dilation, loss in ((1, 0.0), (2, 0.1), (4, 0.1 + change), (8, 5.0 + seed / 100)):
            add(sweep, dilation, [loss] * 16, seed=seed, stored=False)
    row = cells_of(sweep)
    assert (row.loc[("D4", 0)]["loss_tied"], row.loc[("D4", 0)]["loss_tied_seeds"]) == (False, True)
    assert not row.loc[("D8", 0)]["loss_tied_seeds"]
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.path))
    (mark,) = (note for note in table.notes if note.startswith("~"))
    told = "cannot be told from the best sparse pattern of its model (bold) over the 3 seeds (Student's t, Holm)"
    assert mark == f"~: {told}."
    # Of two results one has samples: what the mark says of each.
    rows = pd.DataFrame({"done": [3], **{f"{name}_{key}": [True] for name in "ab" for key in ("best", "tied_seeds")}})
    notes = difference_notes(rows, {}, {"a": "A", "b": "B"}, Stored({"a"}, set()))
    assert f"~: {told}; over the items it can, where they are stored." in notes
    assert "No samples, so no ± over items and no ties over them: B." in notes


def test_samples_that_are_not_the_result_are_not_used(sweep):
    """As lambada's perplexity, whose items are log-likelihoods."""
    for dilation in (1, 2, 4):
        cell = add(sweep, dilation, [0.1 * dilation] * 16)
        items = [{"task": "loss", "id": i, "loss": -float(HARD[i])} for i in range(16)]
        write_samples(sweep.path / "evaluate" / cell["id"], items)
    (table, *_) = accuracy_vs_dilation.contents(load_sweep(sweep.write()))
    assert "No ± over items and no ties over them of loss: the samples' mean is not the recorded result." in table.notes
    assert list(table.shown["Δ loss"]) == ["0.000", "0.100", "0.300"]


def test_another_baseline(sweep):
    for dilation, change in ((1, 0.0), (2, 0.1), (4, 0.3)):
        add(sweep, dilation, [change, change + 0.02] * 8)
    cells = cells_of(sweep, baseline="D2").droplevel("seed")
    assert list(cells["loss_delta"]) == pytest.approx([-0.1, 0.0, 0.2])
    assert cells.loc["D1", "loss_delta_p"] < 0.01
    assert list(cells["loss_delta_pm"].isna()) == [False, True, False]


def test_a_task_of_its_own_table_shows_its_difference(sweep):
    add(sweep, 1, [0.0] * 16, task="cloze")
    add(sweep, 2, [-0.10, -0.12] * 8, task="cloze")
    add(sweep, 4, [-0.12, -0.10] * 8, task="cloze")
    table = next(part for part in pattern_tables.contents(load_sweep(sweep.write())))
    assert "Δ all" in table.shown
    assert {"cloze_accuracy_delta", "cloze_accuracy_delta_pm", "average_tied"} <= set(table.data)
    assert table.shown["Δ all"].iloc[1].startswith("−0.11 ± 0.00")


def test_an_unfinished_baseline_or_seed_leaves_no_error(sweep):
    add(sweep, 1, [0.0] * 16)
    add(sweep, 1, [0.0] * 16, seed=1, status="failed")
    add(sweep, 2, [0.1] * 8 + [0.2] * 8)
    add(sweep, 2, [0.1] * 8 + [0.2] * 8, seed=1)
    frame = load_sweep(sweep.write())
    cells = with_differences(frame, ["loss"]).set_index(["pattern", "seed"])
    assert cells.loc[("D2", 0), "loss_delta_pm"] > 0
    assert np.isnan(cells.loc[("D2", 1), "loss_delta_pm"])
    rows = with_row_errors(over_seeds(in_order(frame), ["loss"]), frame, ["loss"]).set_index("pattern")
    assert np.isnan(rows.loc["D2", "loss_delta_pm"])


# ---- the bootstrap, t and Holm ----


def test_resampled_means_are_of_the_same_draws():
    values = np.random.default_rng(0).normal(size=(3, 40))
    weights = np.arange(1.0, 41.0)
    means = resampled_means(values, weights, seed=7)
    assert np.allclose(means[0] - means[1], resampled_means(values[:1] - values[1:2], weights, seed=7)[0])
    assert not np.allclose(means, resampled_means(values, weights, seed=8))
    many = np.random.default_rng(1).normal(size=(1, 5000))
    assert resampled_means(many, np.ones(5000), 0).std() == pytest.approx(many.std() / 5000**0.5, rel=0.06)


def test_p_beyond_what_resamples_show():
    means = np.random.default_rng(0).normal(1.0, 0.1, (1, 2000))
    assert p_values(means, np.array([1.0]), np.array([1000]))[0] < 1e-20
    assert p_values(means, np.array([1.0]), np.array([6]))[0] == 2 / 2**6
    assert p_values(np.zeros((1, 2000)), np.array([0.0]), np.array([0]))[0] == 1
    # Between 0.01 and 1, and so on one side of zero in every resample, whose number says p < 1 / 2000. The normal tail
    # of 1.8 standard errors is far above that, and no reason to doubt what was counted.
    flat = np.linspace(0.01, 1.0, 2000)[None]
    for sign in (1, -1):
        assert p_values(sign * flat, sign * flat.mean(axis=1), np.array([1000]))[0] == 1 / 2000
    one_beyond = np.where(np.arange(2000) == 7, -0.01, flat)
    assert p_values(one_beyond, one_beyond.mean(axis=1), np.array([1000]))[0] == 2 / 2000


@pytest.mark.parametrize(("t", "freedom"), [(12.706, 1), (4.3027, 2), (3.1824, 3), (2.7764, 4), (2.2281, 10)])
def test_students_t_against_its_table(t, freedom):
    """Values whose mean is t standard errors: the two-sided p of the tables is 0.05."""
    spread = np.linspace(-1, 1, freedom + 1)
    error = spread.std(ddof=1) / (freedom + 1) ** 0.5
    assert t_p(spread + t * error) == pytest.approx(0.05, abs=2e-5)


@pytest.mark.parametrize(
    ("values", "p"),
    [([0.0] * 3, 1.0), ([0.1] * 3, 0.0), ([1.0], np.nan), ([], np.nan), ([1.0, np.nan], np.nan), ([1, np.inf], np.nan)],
)
def test_p_of_seeds_that_all_say_the_same_or_too_little(values, p):
    assert t_p(values) == pytest.approx(p, nan_ok=True)


def test_holm_takes_no_order_for_granted():
    assert list(holm(pd.Series([0.03, 0.01, 0.04]))) == pytest.approx([0.06, 0.03, 0.06])
