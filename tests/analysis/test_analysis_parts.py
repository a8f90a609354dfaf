"""What the modules compute: averages, frontiers, places in hybrids, an ablation's combinations, curves, comparisons."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis import ablation, adaptation_curves, masks, pareto, pattern_tables, recurrence, sensitivity
from ratplus.analysis import report as reports
from ratplus.analysis.compare import compare, differences, join
from ratplus.analysis.draw.output import write
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.frame.reference import check_reference, paper_rows
from ratplus.analysis.frame.tasks import is_cost, less_is_better, result_column
from ratplus.analysis.paired.bootstrap import holm, paired_bootstrap
from ratplus.analysis.report import report
from ratplus.analysis.scaling_gap import table as gaps
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.curve import curve_rows
from ratplus.records.record import write_record
from ratplus.records.samples import write_samples

# ---- names of metrics ----


@pytest.mark.parametrize(
    ("name", "suite", "task", "measure", "lower"),
    [
        ("loss", "language", "loss", "loss", True),
        ("recall_accuracy", "recall", "recall", "accuracy", False),
        ("recall_accuracy_1_32", "recall", "recall 1–31", "accuracy", False),
        ("piqa/acc_norm", "commonsense", "piqa", "acc_norm", False),
        ("piqa/acc,none", "commonsense", "piqa", "acc", False),
        ("gsm8k/exact_match,strict", "other", "gsm8k strict", "exact_match", False),
        ("arc_easy_acc", "commonsense", "arc_easy", "acc", False),
        ("longbench_qasper/score", "longbench", "qasper", "score", False),
        ("ruler/niah_multikey_2/overlap", "niah", "multikey_2", "overlap", False),
        ("cloze_accuracy", "cloze", "cloze", "accuracy", False),
        ("wikitext/word_perplexity", "language", "wikitext", "word_perplexity", True),
        ("metric:seed", "other", "seed", "", False),
        ("my own thing", "other", "my own thing", "", False),
    ],
)
def test_what_a_name_says(name, suite, task, measure, lower):
    found = result_column(name)
    assert (found.suite, found.task, found.measure, found.lower) == (suite, task, measure, lower)


@pytest.mark.parametrize(
    ("name", "cost"),
    [("decode_kv_bytes", True), ("prefill_attention_flops", True), ("max_batch", True), ("piqa/acc", False),
     ("recall_accuracy", False), ("terms/acc", False)],
)  # fmt: skip
def test_counts_of_costs_are_no_results(name, cost):
    assert is_cost(name) is cost


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("loss", True), ("piqa/acc", False), ("recall_accuracy", False), ("wikitext/word_perplexity", True),
        ("my own thing", None), ("kv_entries", True), ("kv_ratio", True), ("attention_flops_ratio", True),
        ("decode_kv_bytes", True), ("max_batch", False), ("selection_density", True), ("selection_hit_rate", False),
        ("timing:decode_ms_per_token", True), ("timing:decode_tokens_per_second", False), ("timing:max_batch", False),
    ],
)  # fmt: skip
def test_which_way_is_better(name, less):
    assert less_is_better(name) is less


# ---- pattern tables ----


def test_averages_deltas_bold_and_gaps(sweep):
    for pattern, piqa, hellaswag in ((1, 0.60, 0.40), (4, 0.58, 0.39), (16, 0.50, 0.38), (64, 0.55, None)):
        metrics = {"piqa/acc": (piqa, 0.03), "hellaswag/acc_norm": (0.3, 0.04)}
        metrics |= {} if hellaswag is None else {"hellaswag/acc": (hellaswag, 0.04)}
        sweep.add("ratplus_tiny", Pattern(pattern), {"loss": 1.7} | metrics)
    sweep.add("ratplus_tiny", Pattern(32), status="failed")
    frame = load_sweep(sweep.write())
    data = pattern_tables.table(frame, "commonsense").set_index("pattern")
    assert data.loc["D4", "average"] == pytest.approx(0.485)  # acc rather than acc_norm, one of each task
    assert data.loc["D4", "average_stderr"] == pytest.approx(0.025)
    assert data.loc["D4", "average_delta"] == pytest.approx(-0.015)
    assert data.loc["D64", "piqa/acc"] == 0.55
    assert np.isnan(data.loc["D64", "average"])  # never the mean of what is left
    shown = pattern_tables.summary(frame, "commonsense").set_index("Pattern")
    assert shown.loc["D1", "Average (%)"] == "50.0 ± 2.5"  # dense is the reference, not the best pattern
    assert shown.loc["D4", "Average (%)"] == "**48.5 ± 2.5**"
    assert shown.loc["D16", "Δ average"].startswith("−6.0")
    assert shown.loc["D64", "Average (%)"] == "—"
    assert "**failed**" in list(shown.loc["D32"])


def test_an_average_has_an_error_where_all_its_tasks_have_one(sweep):
    for pattern, error in ((4, 0.03), (16, None)):
        results = {"piqa/acc": (0.6, error), "hellaswag/acc": (0.4, 0.04)}
        sweep.add("ratplus_tiny", Pattern(pattern), results)
    data = pattern_tables.table(load_sweep(sweep.write()), "commonsense").set_index("pattern")
    assert list(data["average"]) == pytest.approx([0.5, 0.5])
    assert list(data["average_stderr"]) == pytest.approx([0.025, np.nan], nan_ok=True)


def test_by_suite_users_appear_without_a_change_of_code(sweep):
    for pattern, value in ((1, 3.5), (4, 2.5)):
        sweep.add("ratplus_tiny", Pattern(pattern), {"loss": 1.7, "my_task/error": (value, 0.1), "b": value})
    tables = {table.name: table.shown for table in pattern_tables.contents(load_sweep(sweep.write()))}
    assert list(tables["pattern_tables_other"]["my task ↓"]) == ["3.50 ± 0.10", "2.50 ± 0.10"]


def test_many_tasks_are_continued_in_another_table(sweep):
    sweep.add("ratplus_tiny", Pattern(1), {f"longbench_t{task}/score": 0.1 for task in range(14)})
    tables = pattern_tables.contents(load_sweep(sweep.write()))
    assert [table.name for table in tables] == ["pattern_tables_longbench", "pattern_tables_longbench_2"]
    assert [table.shown.shape[1] for table in tables] == [14, 6]
    assert list(tables[1].shown)[-2:] == ["Average (%)", "Δ average"]
    # The data of all tasks are written once.
    written = [path.name for path in write(tables, sweep.path / "report")]
    first, second = (table.name for table in tables)
    assert written == [f"{first}.md", f"{first}.tex", f"{first}.csv", f"{second}.md", f"{second}.tex"]
    header = (sweep.path / "report" / f"{first}.csv").read_text().splitlines()[0]
    assert all(f"longbench_t{task}/score" in header for task in range(14))


def test_the_papers_values_stand_beside_ours_and_say_so(sweep, monkeypatch):
    monkeypatch.setattr(reports, "MODULES", [pattern_tables])
    sweep.add("ratplus_tiny", Pattern(1), {"loss": 1.7, "piqa/acc": (0.6, 0.03), "hellaswag/acc": (0.4, 0.03)})
    sweep.write()
    report(sweep.path, reference="paper")
    text = (sweep.path / "report" / "pattern_tables_commonsense.md").read_text()
    assert "arXiv 2602.18196" in text
    frame = load_sweep(sweep.path)
    frame.attrs["reference"] = "paper"
    shown = pattern_tables.summary(frame, "commonsense").set_index("Model")
    paper = shown.loc["RAT+ 1.5B (paper)"].iloc[0]
    assert (paper["Pattern"], paper["Average (%)"], paper["piqa (%)"]) == ("D16", "58.06", "—")
    assert "| RAT+ 1.5B (paper)" in text
    report(sweep.path)
    assert "paper" not in (sweep.path / "report" / "pattern_tables_commonsense.md").read_text()
    assert len(paper_rows("niah")) == 24
    with pytest.raises(ValueError, match="allowed: paper"):
        check_reference("papers")


def test_needles_by_depth_and_by_another_scorer_do_not_enter_the_average(sweep):
    metrics = {"niah_single_1_overlap": 0.2, "niah_single_1_substring": 0.8, "niah_multikey_1_substring": 0.4}
    sweep.add("ratplus_tiny", Pattern(1), metrics | {"niah_single_1_substring_0_25": 0.1})
    row = pattern_tables.table(load_sweep(sweep.write()), "niah").iloc[0]
    assert row["average"] == pytest.approx(0.6)
    assert (row["group:single"], row["group:multi-key"]) == pytest.approx((0.8, 0.4))


# ---- frontier ----


@pytest.mark.parametrize("seed", range(5))
def test_frontier_is_what_nothing_beats(seed):
    generator = np.random.default_rng(seed)
    costs, values = (pd.Series(generator.integers(0, 12, 40).astype(float)) for _ in range(2))
    values[3] = np.nan
    found = pareto.frontier(costs, values)
    for i in range(40):
        no_worse = (costs <= costs[i]) & (values <= values[i])
        beaten = (no_worse & ((costs < costs[i]) | (values < values[i]))).any()
        assert found[i] == (not beaten and not np.isnan(values[i]))


def test_twins_stand_on_the_frontier_together():
    """Such as D1 and D1-W64, wherever a cheaper row stands in the frame."""
    assert list(pareto.frontier(pd.Series([4.0, 4.0, 1.0]), pd.Series([1.0, 1.0, 3.0]))) == [True, True, True]


# ---- places in hybrids ----


@pytest.mark.parametrize(
    ("patterns", "place"),
    [
        (PatternMap.per_layer([Pattern(), Pattern(64), Pattern()], 2), ("sparse", "D64", 1, None)),
        (PatternMap.per_layer([Pattern(64), Pattern(64), Pattern()], 2), ("dense", "D64", 2, None)),
        (PatternMap.per_head([Pattern(), Pattern(), Pattern(8, 4)], 2), ("sparse", "D8-W4", None, 2)),
        (PatternMap(((Pattern(), Pattern()), (Pattern(None, 4), Pattern()))), ("sparse", "stream-W4", 1, 0)),
        (PatternMap.per_layer([Pattern(), Pattern(4), Pattern(64)], 2), None),
        (PatternMap.per_layer([Pattern(), Pattern(4), Pattern(4), Pattern()], 2), None),
        (PatternMap.uniform(Pattern(4), 3, 2), None),
    ],
)
def test_the_one_place_that_differs(patterns, place):
    found = sensitivity.single(patterns.label, patterns.layers, patterns.heads)
    assert (tuple(found.values()) if found else None) == place


# ---- ablation, scaling, curves, masks, recurrence ----


def test_ablation_tells_combinations_apart(sweep):
    for arl, length in ((False, None), (True, 16), (True, 64)):
        for steps in (0, 40):
            axes = {"train.pretrain.arl": arl, "train.adapt.steps": steps}
            axes |= {"train.pretrain.arl_dilation": length} if arl else {}
            for dilation in (1, 64):
                sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7 + 0.1 * (dilation > 1)), axes=axes)
    frame = load_sweep(sweep.write())
    shown = ablation.summary(frame)
    assert list(shown["ARL"]) == ["off", "off", "D* = 16", "D* = 16", "D* = 64", "D* = 64"]
    assert list(shown["Adapted"]) == ["–", "✓"] * 3
    assert set(ablation.table(frame)["combination"]) == {
        "ratplus_tiny, no ARL", "ratplus_tiny, ARL D* = 16", "ratplus_tiny, ARL D* = 64"
    }  # fmt: skip
    assert ablation.applies(frame)


def test_gap_is_of_each_models_own_dense_cell(everything):
    rows = gaps(load_sweep(everything))
    row = rows[rows["model"].eq("attention_small") & rows["pattern"].eq("D64")].iloc[0]
    assert row["loss_delta"] == pytest.approx(2 * 0.13)
    assert row["parameters"] == 4e6


def test_curves_leave_out_broken_and_repeated_rows(tmp_path):
    (tmp_path / "curve.csv").write_text("step,tokens,loss\n1,10,3.0\n2,20,2.5\n2,20,2.4\n3,30,nan\n4,4")
    rows = curve_rows(tmp_path / "curve.csv")
    assert [(row["step"], row["tokens"]) for row in rows] == [(1, 10), (2, 20), (3, 30)]
    assert [row["loss"] for row in rows] == pytest.approx([3.0, 2.4, float("nan")], nan_ok=True)
    assert curve_rows(tmp_path / "absent" / "curve.csv") == []


def test_adaptation_is_the_mean_over_seeds_as_far_as_all_went(sweep):
    for seed, length in ((0, 3), (1, 2)):
        curve = [(step, 100 * step, 2.0 + seed - 0.1 * step) for step in range(1, length + 1)]
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7), seed=seed, curve=curve)
    rows = adaptation_curves.table(load_sweep(sweep.write()))
    assert list(rows["step"]) == [1, 2]
    assert list(rows["loss"]) == pytest.approx([2.4, 2.3])


def test_masks_are_of_every_pattern_also_inside_hybrids(sweep):
    sweep.add("ratplus_tiny", PatternMap.per_layer([Pattern(), Pattern(8, 16, 4), Pattern(), Pattern(None, 32)], 4))
    frame = load_sweep(sweep.write())
    assert masks.patterns(frame) == [Pattern(), Pattern(8, 16, 4), Pattern(None, 32)]
    row = masks.table(frame).set_index("pattern").loc["D8-W16-I4"]
    mask = Pattern(8, 16, 4).visible(512)
    assert row["visible_ratio"] == pytest.approx(mask.sum() / (512 * 513 / 2))


def test_gates_of_another_format_are_left_out_with_a_line(everything, sweep, caplog):
    assert len(recurrence.table(load_sweep(everything))) == 21 * 16
    cell = sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    (sweep.write() / "evaluate" / cell["id"] / "gates.json").write_text(json.dumps({"format": 9}))
    assert not recurrence.applies(load_sweep(sweep.path))
    assert "format 9" in caplog.text


def test_schemes_of_the_recurrence_are_told_apart(sweep, monkeypatch):
    monkeypatch.setattr(reports, "MODULES", [recurrence])
    for chunk in (None, 16):
        for seed in (0, 1):
            for pattern in (Pattern(), Pattern(64)):
                cell = sweep.add("ratplus_tiny", pattern, sweep.results(1.7), seed=seed,
                                 axes={"model.recurrence_chunk": chunk, "train.adapt.lr": 0.1})  # fmt: skip
                gates = sweep.gates() | {"recurrence_chunk": chunk}
                saw = [[1 + layer + seed + p % (chunk or 512) for p in gates["positions"]] for layer in range(4)]
                gates["value_norm"] = saw
                (sweep.path / "evaluate" / cell["id"] / "gates.json").write_text(json.dumps(gates))
    frame = load_sweep(sweep.write())
    rows = recurrence.schemes(frame)
    assert set(rows["run"]) == {"ratplus_tiny, adapt.lr=0.1"}
    assert set(rows["pattern"]) == {"D1"}
    assert list(rows["seeds"].unique()) == [2]
    full, chunked = (rows[rows["chunk"].isna()], rows[rows["chunk"].eq(16)])
    assert list(full["position"]) == list(chunked["position"]) == list(range(0, 512, 32))
    assert full["norm"].iloc[-1] == 1 + 1.5 + 0.5 + 480
    assert list(chunked["norm"].unique()) == [3.0]
    shown = recurrence.schemes_summary(rows)
    assert list(shown["Recurrence"]) == ["full sequence", "starts anew every 16"]
    paths = report(sweep.path)
    assert {f"recurrence_schemes.{end}" for end in ("csv", "md", "tex", "png", "pdf")} <= {p.name for p in paths}
    assert "by how often it starts anew" in paths[-1].read_text()


def test_one_scheme_has_no_table_of_schemes(everything):
    assert recurrence.schemes(load_sweep(everything)).empty


# ---- two sweeps ----


@pytest.fixture
def two(sweep, tmp_path):
    """Two sweeps of a dense and a D4 cell; in the second the loss of D4 is 0.01 higher."""
    other = type(sweep)(tmp_path / "outputs" / "other")
    for folder, shift in ((sweep, 0.0), (other, 0.01)):
        for dilation in (1, 4):
            loss = 1.7 + 0.05 * (dilation > 1) + shift * (dilation > 1)
            folder.add("ratplus_tiny", Pattern(dilation), folder.results(loss, 0.8))
    return sweep, other


def test_without_samples_the_standard_errors_decide(two):
    a, b = (load_sweep(folder.write()) for folder in two)
    rows = differences(a, b, join(a, b)).set_index(["metric", "pattern"])
    row = rows.loc[("loss", "D4")]
    assert row["difference"] == pytest.approx(0.01)
    assert row["stderr"] == pytest.approx(0.006 * 2**0.5)
    assert row["method"] == "standard errors"
    assert row["p"] == pytest.approx(0.2386, abs=1e-3)
    assert row["p_holm"] == pytest.approx(2 * row["p"]), "Holm counts the two patterns of this metric, no other metric"


def test_with_samples_the_same_small_difference_is_certain(two):
    generator = np.random.default_rng(0)
    hardness = generator.normal(1.75, 0.5, 200)
    for folder, shift in zip(two, (0.0, 0.01)):
        for cell in folder.cells:
            losses = hardness + generator.normal(0, 0.002, 200)
            # Samples make up what the record says.
            losses += 1.7 + (0.05 + shift) * (cell["label"] == "D4") - losses.mean()
            items = [{"task": "loss", "id": i, "loss": loss, "count": 512} for i, loss in enumerate(losses)]
            write_samples(folder.path / "evaluate" / cell["id"], items)
    a, b = (load_sweep(folder.write()) for folder in two)
    rows = differences(a, b, join(a, b)).set_index(["metric", "pattern"])
    row = rows.loc[("loss", "D4")]
    assert (row["method"], row["items"]) == ("paired bootstrap", 200)
    assert row["difference"] == pytest.approx(0.01, abs=0.001)
    assert row["p_holm"] < 0.01
    assert rows.loc[("loss", "D1"), "p_holm"] > 0.05
    assert rows.loc[("recall_accuracy", "D4"), "method"] == "standard errors"
    paths = compare(two[0].path, two[1].path)
    assert [path.name for path in paths][:2] == ["compare_other.md", "compare_other.tex"]
    text = paths[0].read_text()
    assert "**0.010 ± 0.000**" in text
    assert "paired bootstrap" in text
    assert "unpaired" in text
    assert paths[-1].name == "compare_other.html"
    page = paths[-1].read_text(encoding="utf-8")
    said = re.search('class="headline">([^<]*)<', page)[1]
    assert said.startswith("In other, loss: 1 of 2 patterns differ for certain, D4 of ratplus_tiny most, by +0.010 ± 0")
    assert "recall accuracy: no certain difference (2 patterns)" in said
    assert page.count("data:image/png;base64,") == 1
    # The rows stand in the page's data, each text of a column once.
    assert '"higher"' in page
    assert '"200"' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_results_on_other_prompts_are_not_compared(two):
    for number, folder in enumerate(two):
        for cell in folder.cells:
            own = folder.path / "evaluate" / cell["id"]
            record = json.loads((own / "record.json").read_text())
            facts = {"tasks": {"cloze": {"prompts_sha256": str(number)}, "piqa": {"prompts_sha256": "same"}}}
            metrics = {name: {"value": 0.5, "stderr": 0.1, "count": 4} for name in ("cloze_accuracy", "piqa_acc")}
            body = {key: record[key] for key in ("stage", "config", "parent", "status", "timing")}
            write_record(own, **body, metrics=metrics, provenance=facts)
            for_tasks = (("cloze", "accuracy"), ("piqa", "acc"))
            write_samples(own, [{"task": t, "id": i, n: float(i % 2)} for t, n in for_tasks for i in range(4)])
    a, b = (load_sweep(folder.write()) for folder in two)
    rows = differences(a, b, join(a, b))
    assert rows.attrs["refused"] == ["cloze_accuracy"]  # other prompts: what differs may be what was asked
    rows = rows.set_index(["metric", "pattern"])
    assert ("cloze_accuracy", "D4") not in rows.index
    assert rows.loc[("piqa_acc", "D4"), "method"] == "paired bootstrap"


def test_the_bootstrap_covers_the_truth():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        found = paired_bootstrap(generator.normal(0.3, 1.0, 80))
        hits += found["low"] <= 0.3 <= found["high"]
        assert found["stderr"] == pytest.approx(1 / 80**0.5, rel=0.35)
    assert 50 <= hits <= 60


def test_the_bootstrap_weighs_its_items():
    found = paired_bootstrap(np.array([1.0, 0.0]), np.array([9.0, 1.0]))
    assert found["difference"] == pytest.approx(0.9)
    # Resampled means are weighted too: of (both first, one of each, both second).
    assert found["stderr"] == pytest.approx(np.sqrt((1 + 2 * 0.81) / 4 - 0.7**2), rel=0.05)
    same = paired_bootstrap(np.full(30, 0.25), np.arange(1.0, 31.0))
    assert (same["difference"], same["low"], same["high"]) == pytest.approx((0.25, 0.25, 0.25))
    assert same["stderr"] == pytest.approx(0, abs=1e-12)


def test_weights_and_seeds_of_stored_samples(two):
    """An item's weight is its count; the same items under two seeds are no more items than under one."""
    generator = np.random.default_rng(0)
    shifts, counts = generator.normal(0.1, 1, 50), generator.integers(1, 100, 50)
    rows = {}
    for seeds in ((0,), (0, 1)):
        for folder, sign in zip(two, (0, 1), strict=True):
            folder.cells.clear()
            for seed in seeds:
                loss = 1 + sign * np.average(shifts, weights=counts)
                cell = folder.add("ratplus_tiny", Pattern(4), folder.results(loss), seed=seed)
                items = [{"task": "loss", "id": i, "loss": 1 + sign * shifts[i], "count": int(counts[i])}
                         for i in range(50)]  # fmt: skip
                write_samples(folder.path / "evaluate" / cell["id"], items)
        a, b = (load_sweep(folder.write()) for folder in two)
        rows[len(seeds)] = differences(a, b, join(a, b)).set_index("metric").loc["loss"]
    assert list(rows[2][["seeds", "items", "method"]]) == [2, 50, "paired bootstrap"]
    for row in rows.values():
        assert row["difference"] == pytest.approx((shifts * counts).sum() / counts.sum())
    assert rows[2]["stderr"] == pytest.approx(rows[1]["stderr"])


def test_the_bootstraps_p_and_interval():
    # Means of two draws from these: 3, 1, 1 and -1; a quarter lies below zero, and p counts both sides.
    assert paired_bootstrap(np.array([3.0, -1.0]))["p"] == pytest.approx(0.5, abs=0.06)
    found = paired_bootstrap(np.random.default_rng(3).normal(0.0, 1.0, 400))
    assert (found["high"] - found["low"]) / found["stderr"] == pytest.approx(2 * 1.96, rel=0.06)


def test_holm_on_an_example_worked_by_hand():
    assert list(holm(pd.Series([0.01, 0.04, 0.03, np.nan]))) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


def test_sweeps_of_two_models_are_joined_by_pattern_and_others_refused(two):
    first, second = two
    renamed = type(first)(first.path.parent / "renamed")
    for dilation in (1, 4, 8):
        renamed.add(
            "attention_tiny", Pattern(dilation), first.results(1.9), status="failed" if dilation == 4 else "done"
        )
    paths = compare(first.write(), renamed.write())
    text = paths[0].read_text()
    assert "ratplus_tiny → attention_tiny" in text
    assert "1 of 3 cells stand in renamed only." in text
    assert "1 of the cells in common have no result in renamed." in text
    renamed.add("other_tiny", Pattern(4), first.results(1.9))
    with pytest.raises(ValueError, match="no model in common"):
        compare(first.path, renamed.write())
    second.cells.clear()
    second.add("ratplus_tiny", Pattern(32), first.results(1.9))
    with pytest.raises(ValueError, match="no pattern and seed in common"):
        compare(first.path, second.write())


GATES = {
    "format": 1, "positions": [0, 1, 2], **{name: [[0.5, 0.5]] * 2 for name in ("gate_mean", "gate_p10", "gate_p90")},
    "memory_tokens": [[1, 2.5]] * 2, "key_norm": [[1, 1, 1]] * 2, "value_norm": [[1, 1, 1]] * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"memory_tokens": 7}, {"gate_mean": [[0.5]]}, {"gate_p10": [["x", None]] * 2}, {"positions": "abc"},
     {"key_norm": [[1]] * 2}, {"value_norm": {"a": 1}}, {"gate_mean": []}, {"recurrence_chunk": "x"}],
)  # fmt: skip
def test_gates_of_other_types_are_left_out(tmp_path, caplog, change):
    frame = pd.DataFrame({"cell": ["0123456789ab"], "status": ["done"]})
    frame.attrs["folder"] = str(tmp_path)
    path = tmp_path / "evaluate" / "0123456789ab" / "gates.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(GATES))
    assert recurrence.gates_of(frame) == {"0123456789ab": GATES}
    path.write_text(json.dumps(GATES | change))
    assert recurrence.gates_of(frame) == {}
    assert "gates.json is left out" in caplog.text
