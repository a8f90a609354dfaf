"""What a report is put together from, with modules that stand in; and small parts of the modules at their edges."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from matplotlib.figure import Figure
from small_sweeps import frame_of, results, with_trained_context

from ratplus.analysis import ablation, efficiency, pareto, positions
from ratplus.analysis import report as reports
from ratplus.analysis.draw import efficiency as drawn
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame import curves
from ratplus.analysis.frame.aggregate import first_runs, spread_patterns
from ratplus.analysis.frame.bench_results import read_results
from ratplus.analysis.frame.load import _plain, _rope, read_sweep
from ratplus.analysis.frame.reference import PARAMETERS, paper_rows
from ratplus.analysis.gates import Gate, _verdict
from ratplus.analysis.search import figures
from ratplus.analysis.selection.accuracy_vs_budget import results_of
from ratplus.pattern import Pattern

pytestmark = pytest.mark.usefixtures("quick")


class Module:
    """Stands in for a module of the report."""

    def __init__(self, name: str, made, applying: bool = True):
        self.NAME, self._made, self._applying = name, made, applying

    def applies(self, frame) -> bool:
        return self._applying

    def contents(self, frame):
        if isinstance(self._made, Exception):
            raise self._made
        return self._made(frame) if callable(self._made) else self._made


def test_modules_that_fail_are_named_and_the_others_written(sweep, monkeypatch, caplog):
    shown, seen = pd.DataFrame({"a": ["1"]}), {}
    tables = [Table("one", None, shown), Table("two", shown, shown)]

    def asked(frame):
        seen.update(frame.attrs)
        return [tables[0], Picture("one", Figure(figsize=(0.5, 0.5)))]

    modules = [
        Module("one", asked), Module("broken", ValueError("it is\nbroken")),
        Module("divides", ZeroDivisionError("zero")),
        Module("none", [Table("none", None, shown)], applying=False), Module("two", [tables[1]]),
    ]  # fmt: skip
    page = {}

    def write_page(*arguments):
        page["given"] = arguments
        return arguments[4] / "index.html"

    monkeypatch.setattr(reports, "MODULES", modules)
    monkeypatch.setattr(reports, "write_page", write_page)
    sweep.add("ratplus_tiny", Pattern(4), results(2.0), pattern_name="quarter")
    target = sweep.write() / "report"
    target.mkdir()
    for name in ("none.md", "broken.png", "two.pdf", "mine.md", "divides_mine.md"):
        (target / name).write_text("old")
    paths = reports.report(sweep.path, reference="paper", baseline="quarter", reproduce=str)
    names = ["one.md", "one.tex", "one.png", "one.pdf", "two.md", "two.tex", "two.csv", "index.html"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in target.iterdir()) == sorted([*names[:-1], "mine.md", "divides_mine.md"])
    assert [record.message for record in caplog.records] == [
        "broken: left out of the report (it is\nbroken)", "divides: left out of the report (zero)",
    ]  # fmt: skip
    read, pictures, given, said, folder, reproduce, titles = page["given"]
    assert ([path.name for path in pictures], given, folder, reproduce) == (["one.png"], tables, target, str)
    assert said == reports.headline(read.frame)
    assert titles is reports.TITLES
    assert (seen["reference"], seen["baseline"]) == ("paper", "quarter")
    other = read_sweep(sweep.path)
    reports.report(sweep.path, sweep=other)
    assert page["given"][0] is other
    assert other.frame.attrs["reference"] is other.frame.attrs["baseline"] is None
    reports.report(sweep.path, baseline="dense")


def test_names_of_files_that_a_report_may_have_left(tmp_path):
    for name in ("pattern_tables_mine.md", "pattern_tables_mine_2.md", "pattern_tables_x.csv", "other.md"):
        (tmp_path / name).touch()
    assert sorted(reports._names("pattern_tables", tmp_path)) == ["pattern_tables_mine", "pattern_tables_mine_2"]
    assert list(reports._names("ablation", tmp_path)) == ["ablation", "ablation_gaps"]
    assert list(reports._names("recurrence", tmp_path)) == ["recurrence", "recurrence_schemes"]
    assert list(reports._names("masks", tmp_path)) == ["masks"]
    assert list(reports._names("efficiency", tmp_path)) == [
        "efficiency_kernels", "efficiency_lengths", "efficiency_models",
    ]  # fmt: skip


# ---- runs and patterns that a figure has room for ----


def test_each_models_first_variants_are_kept():
    names = ["a, lr=1", "a, lr=2", "a, lr=3", "b", "c, lr=1", "c, lr=2"]
    rows = pd.DataFrame({"run": [*names, "a, lr=1"], "place": range(7)})
    told = "{} of 6 models and variants; all: see table"
    for most, kept in (
        (1, ["a, lr=1"]), (3, ["a, lr=1", "b", "c, lr=1"]), (4, ["a, lr=1", "a, lr=2", "b", "c, lr=1"]),
        (5, ["a, lr=1", "a, lr=2", "b", "c, lr=1", "c, lr=2"]),
    ):  # fmt: skip
        found, said = first_runs(rows, most)
        assert (list(dict.fromkeys(found["run"])), said) == (kept, told.format(most))
        assert 6 in list(found["place"]), "all rows of a run"
    assert first_runs(rows, 6) == (rows, "") or first_runs(rows, 6)[1] == ""


def test_patterns_are_spread_evenly_from_the_first_to_the_last():
    names, rows = [f"D{n}" for n in range(10)], pd.DataFrame({"pattern": [f"D{n}" for n in range(9, 0, -1)]})
    told = "of 9 patterns; all: see table"
    assert spread_patterns(names, rows, 9, "x") == (names[1:], "x")
    assert spread_patterns(names, rows, 3, "") == (["D1", "D5", "D9"], f"3 {told}")
    assert spread_patterns(names, rows, 2, "x") == (["D1", "D9"], f"x; 2 {told}")


# ---- parts of modules ----


@pytest.mark.parametrize(
    ("axes", "arl"),
    [
        ({}, None), ({"train.pretrain.arl": True}, "on"), ({"train.pretrain.arl": False}, "off"),
        ({"train.pretrain.arl": None}, "off"), ({"train.pretrain.arl": math.nan}, "off"),
        ({"train.pretrain.arl": True, "train.pretrain.arl_dilation": 16.0}, "D* = 16"),
        ({"train.pretrain.arl": True, "train.pretrain.arl_dilation": None}, "on"),
        ({"train.pretrain.arl": False, "train.pretrain.arl_dilation": 16}, "off"),
        ({"train.pretrain.arl_dilation": 64}, "D* = 64"), ({"train.pretrain.arl_dilation": math.nan}, None),
    ],
)  # fmt: skip
def test_what_is_said_of_active_recurrence_learning(axes, arl):
    assert ablation._arl(axes) == arl


@pytest.mark.parametrize(("value", "is_number"), [(1, True), (0.5, True), (True, False), ("1", False), (None, False)])
def test_truth_values_are_no_numbers(value, is_number):
    assert ablation._is_number(value) == is_number


def test_an_ablation_varies_one_of_four_things(sweep):
    for rank, value in enumerate((1, 2)):
        sweep.add("m", Pattern(4), results(2.0), axes={"train.lr": value, "train.adapt.steps": 40})
        frame = frame_of(sweep)
        assert not ablation.applies(frame), rank
    with pytest.raises(ValueError, match="varies neither train.pretrain.arl, train.pretrain.arl_dilation, train.adapt"):
        ablation.contents(frame)
    for key in ("train.pretrain.arl", "train.pretrain.arl_dilation", "train.adapt.steps", "train.pretrain.sparse"):
        sweep.cells.clear()
        for value in (0, 1):
            sweep.add("m", Pattern(4), status="missing", axes={key: value})
        frame = frame_of(sweep)
        assert ablation.applies(frame), key
        with pytest.raises(ValueError, match="ablation: no finished cell has a finite loss"):
            ablation.figure(frame)
        assert len(ablation.contents(frame)) == 1, "the table alone: no loss, no gap, no figure"


def test_of_several_measures_of_a_task_the_first_says_how_good_a_pattern_is():
    names = ["loss", "perplexity", "next_token_accuracy", "piqa/acc_norm", "piqa/acc", "piqa/f1", "recall_accuracy",
             "recall_accuracy_1_32", "a_flops", "gone/acc", "infinite/acc"]  # fmt: skip
    frame = pd.DataFrame({name: [0.5, math.nan] for name in names} | {"gone/acc": math.nan, "infinite/acc": math.inf})
    frame.attrs["metrics"] = names
    assert results_of(frame) == ["loss", "piqa/acc", "recall_accuracy"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, ""), ({"rope_scaling": "none", "rope_base": 10000}, ""), ({"rope_base": 43873.0}, "base 43873"),
        ({"rope_scaling": "yarn", "rope_factor": 4, "rope_original": 512}, "yarn × 4 of 512"),
        ({"rope_scaling": "linear", "rope_factor": 2.5, "rope_base": 5e5}, "linear × 2.5, base 500000"),
    ],
)  # fmt: skip
def test_rotary_positions_in_words(model, words):
    assert _rope(model) == words


def test_structures_are_text():
    assert [_plain(value) for value in ([1, "a"], {"a": 1}, "a", 1, None)] == ['[1, "a"]', '{"a": 1}', "a", 1, None]


def test_a_curve_is_kept_as_a_whole_and_thinned_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "_kept", curves.Kept(1 << 20, curves._bytes_of))
    (tmp_path / "curve.csv").write_text("step,tokens,loss\n" + "".join(f"{i},{10 * i},{i / 4}\n" for i in range(8)))
    said: list[str] = []
    whole = curves.curve_of(tmp_path, 8, said.append)
    assert (len(whole["step"]), whole["loss"][3], said) == (8, 0.75, [])
    assert curves.curve_of(tmp_path, 100) is whole
    assert curves.curve_of(tmp_path, 8) is whole
    few = curves.curve_of(tmp_path, 7, said.append)
    assert len(few["step"]) <= 7
    assert len(said) == 1
    assert curves.curve_of(tmp_path, 7) is not few, "what is thinned is not kept"
    assert curves.curve_of(tmp_path, 8) is whole
    assert curves.curve_of(tmp_path / "absent", 8) == {}
    assert curves._bytes_of(whole) == sum(column.nbytes + 200 for column in whole.values())


@pytest.mark.parametrize(
    ("change", "scale", "rises", "limit", "failed"),
    [(0.5, "", True, 0.5, False), (0.5, "", True, 0.49, True), (-0.5, "", False, -0.5, False),
     (-0.5, "", False, -0.49, True), (0.0, "%", True, 0.0, False)],
)  # fmt: skip
def test_a_limit_itself_is_kept(change, scale, rises, limit, failed):
    rows = pd.DataFrame({"run_a": ["m"], "pattern": ["D4"], "a": [0.0 if scale else 1.0], "b": [1.0 + change],
                         "difference": [change], "stderr": [math.nan], "p_holm": [math.nan]})  # fmt: skip
    assert _verdict(Gate("g", "loss", rises, limit, scale, None), rows, False).failed == failed


def test_the_worst_of_a_gate_is_one_that_fails_it():
    """The largest change is not certain; of those that are, the larger one is told."""
    rows = pd.DataFrame({"run_a": "m", "pattern": ["D1", "D2", "D4"], "a": 1.0, "b": [1.25, 3.0, 1.5], "stderr": 0.5,
                         "difference": [0.25, 2.0, 0.5], "p_holm": [0.01, 0.5, 0.02]})  # fmt: skip
    found = _verdict(Gate("g", "loss", True, 0.0, "", 0.05), rows, False)
    assert found.line == "FAIL g: 2 of 3 patterns; worst: m D4, 1.000 → 1.500 (Δ 0.500 ± 0.500, p 0.02)"
    fallen = _verdict(Gate("g", "loss", False, 0.0, "", 0.05), rows.assign(difference=-rows["difference"]), False)
    assert "worst: m D4" in fallen.line
    at_it = _verdict(Gate("g", "loss", True, 0.0, "", 0.05), rows.assign(p_holm=[0.05, 0.5, 0.05]), False)
    assert not at_it.failed, "certain is what lies below the level"
    none = _verdict(Gate("g", "loss", True, 9.0, "", 0.05), rows, False)
    assert none.line == "ok   g: none of 3 patterns; nearest: m D2, 1.000 → 3.000 (Δ 2.000 ± 0.500, p 0.5)"


def test_one_measure_of_two_finished_cells_is_enough_for_a_frontier(sweep):
    needles = {"niah_single_1_substring": 0.5}
    sweep.add("m", Pattern(1), {"loss": 2.0} | needles)
    sweep.add("m", Pattern(8), status="failed")
    assert not pareto.applies(frame_of(sweep))
    sweep.add("m", Pattern(4), {"loss": 2.0})
    assert pareto.applies(frame_of(sweep)), "two losses, one share of needles"
    sweep.cells.clear()
    for label in ("snap64x16", "snap128x16"):
        sweep.add("m", Pattern.from_label(label), needles)
    assert pareto.applies(frame_of(sweep)), "no loss, two shares"


def test_the_trained_context_of_weights_whose_record_is_gone_or_damaged_is_the_cells(sweep):
    cell = sweep.add("m", Pattern(4), {"loss_at_0_256": 2.0, "loss_at_256_512": 2.5})
    frame = frame_of(sweep)
    record = sweep.path / "pretrain" / cell["stages"]["pretrain"] / "record.json"
    for length, trained in ((64, 64), (None, 512), (128, 128)):
        with_trained_context(sweep, cell, length)
        assert set(positions.table(frame)["trained"]) == {trained}
    record.write_text("{")
    assert set(positions.table(frame)["trained"]) == {512}
    record.unlink()
    assert set(positions.table(frame)["trained"]) == {512}


def test_times_and_axes_stand_sorted_by_name(sweep):
    axes = {"train.lr": 1, "data.mix": 2, "x": 3}
    sweep.add("m", Pattern(4), results(2.0), axes=axes, timing={"z_ms": 1.0, "a_ms": 2.0, "m_ms": 3.0})
    frame = frame_of(sweep)
    assert list(frame.attrs["axes"]) == ["data.mix", "train.lr", "axis:x"]
    assert list(frame)[-6:] == ["timing:a_ms", "timing:m_ms", "timing:z_ms", "data.mix", "train.lr", "axis:x"]
    assert frame["variant"][0] == "data.mix=2, train.lr=1, x=3"


# ---- benchmarks ----


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (math.nan, "—"), (None, "—"), (0.00123456, "0.00123"), (0.123456, "0.123"), (1.23456, "1.23"),
     (9.9, "9.90"), (10.0, "10.0"), (99.9, "99.9"), (100.0, "100"), (123456.0, "123456")],
)  # fmt: skip
def test_three_digits(value, text):
    assert efficiency._three_digits(value) == text


def test_a_table_of_exactly_so_many_rows_says_nothing_of_more(monkeypatch):
    rows = [{"op": "o", "shape": "B1 T8 d8", "pattern": f"D{2**i}", "candidate": "ours", "ms_p50": 1.0, "ms_p20": 1.0,
             "ms_p80": 1.0, "repeats": 1, "gb_s": 1.0, "tflop_s": 1.0, "bandwidth_fraction": 0.5, "limit_ms": 0.5,
             "matmul_fraction": 0.5, "peak_bytes": None} for i in range(3)]  # fmt: skip
    result = {"benchmark": "kernels", "complete": True, "device": "d", "torch": "t", "threads": 1, "dtype": "f",
              "rows": rows, "skipped": []}  # fmt: skip
    monkeypatch.setattr(efficiency, "kernels_figure", lambda rows: None)
    for most, notes, shown in ((3, [], 3), (2, ["1 more rows: see the CSV file."], 2)):
        monkeypatch.setattr(efficiency, "MOST_ROWS", most)
        table = efficiency._contents([result])[0]
        assert (list(table.notes), len(table.shown), len(table.data)) == (notes, shown, 3)


def test_what_a_device_does_not_tell_is_a_dash(tmp_path):
    """Null in every row of a column; where no null may stand, the file is damaged."""
    kernel = {"op": "o", "shape": "B1 T8 d8", "pattern": "D1", "candidate": "ours", "ms_p50": 1.0, "ms_p20": 1.0,
              "ms_p80": 1.0, "repeats": 1, "gb_s": 1.0, "tflop_s": 1.0, "bandwidth_fraction": 0.5, "limit_ms": 0.5,
              "matmul_fraction": 0.5, "peak_bytes": None}  # fmt: skip
    null = [
        f"{name}_{end}" for name in ("prefill", "decode") for end in ("ms_p50", "ms_p20", "ms_p80", "limit_ms", "ratio")
    ]
    model = {"model": "m", "pattern": "D1", "context": 8, "batch": 1, "largest": False, "kv_bytes": 0, "state_bytes": 0,
             "max_batch": 1, "kv_ratio": None, "tokens_per_second": None, **dict.fromkeys(null)}  # fmt: skip
    whole = {"complete": True, "device": "d", "torch": "t", "threads": 1, "dtype": "f", "skipped": []}
    (tmp_path / "k.json").write_text(json.dumps(whole | {"benchmark": "kernels", "rows": [kernel]}))
    (tmp_path / "m.json").write_text(json.dumps(whole | {"benchmark": "model", "rows": [model]}))
    tables = [part for part in efficiency.contents(tmp_path) if isinstance(part, Table)]
    assert list(tables[0].shown.iloc[0])[-1] == "—"
    assert list(tables[1].shown.iloc[0]) == ["m T8 B1", "D1", "1", *["—"] * 6, "0", "—", "0.0", "1"]
    some = model | {"decode_ms_p50": 2.0, "tokens_per_second": 500.0}
    (tmp_path / "m.json").write_text(json.dumps(whole | {"benchmark": "model", "rows": [some]}))
    assert efficiency.contents(tmp_path / "m.json")[1].figure.axes[1].lines, "a time without its percentiles"
    for benchmark, row, key in (("kernels", kernel, "ms_p50"), ("model", model, "kv_bytes")):
        (tmp_path / "m.json").write_text(json.dumps(whole | {"benchmark": benchmark, "rows": [row | {key: None}]}))
        with pytest.raises(ValueError, match=rf"m.json: damaged \(row 1: {key} is a NoneType\)"):
            read_results(tmp_path / "m.json")


def test_labels_that_are_too_long_are_numbered_in_order():
    labels = pd.Series(["layers[D1,D64]", "D1024-W2048", "stream-W65536789", "D1", "abcdefgh", "abcdefghi", "D1"])
    assert drawn._numbered(labels) == {"stream-W65536789": "H1", "layers[D1,D64]": "H2", "abcdefghi": "H3"} or (
        list(drawn._numbered(labels).values()) == ["H1", "H2", "H3"]
    )
    assert "abcdefgh" not in drawn._numbered(labels)
    assert [line.get_label() for line in drawn._spelled_out(pd.Series(["D1", "layers[D1,D64]"]))] == [
        "H1: layers[D1,D64]"
    ]
    assert drawn._in_order({"zz", "-", "D16", "D1", "stream-W4"}) == ["D1", "D16", "stream-W4", "-", "zz"]


def test_the_shape_with_most_patterns_is_drawn_and_of_several_the_one_with_most_work():
    rows = pd.DataFrame({"shape": ["a", "a", "b", "b", "c"], "pattern": ["D1", "D4", "D1", "D4", "D1"],
                         "limit_ms": [1.0, 3.0, 2.0, 2.0, 9.0]})  # fmt: skip
    assert list(drawn._largest(rows)["shape"]) == ["a", "a"]
    assert list(drawn._largest(rows.assign(limit_ms=[1.0, 1.0, 2.0, 1.0, 9.0]))["shape"]) == ["b", "b"]


@pytest.mark.parametrize(
    ("low", "high", "major", "minor"),
    [(1.0, 29.9, "10", "5"), (1.0, 30.0, "10", ""), (0.0011, 0.03, "0.01", "0.005"), (1.0, 9999.0, "10", ""),
     (1000.0, 10000.0, None, "5000")],
)  # fmt: skip
def test_numbers_of_a_logarithmic_axis(low, high, major, minor):
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    drawn._log_axis(axes)
    plain = axes.yaxis.get_major_formatter().format_ticks([0.01 if high < 1 else 10.0])[0]
    assert plain == major if major else plain != "10"
    between = axes.yaxis.get_minor_formatter().format_ticks([0.005 if high < 1 else 5000.0 if low > 100 else 5.0])[0]
    assert between == minor


def test_files_of_another_kind_in_a_folder_of_benchmarks(tmp_path):
    whole = ('{"benchmark": "kernels", "complete": true, "device": "d", "torch": "t", "threads": 1, "dtype": "f", '
             '"rows": [], "skipped": []}')  # fmt: skip
    for name, text in (("b.json", whole), ("a.json", whole.replace('"d"', '"first"')), ("c.json", '{"benchmark": "x"}'),
                       ("d.json", '{"benchmark": "model", "rows": 3}'), ("e.txt", "no")):  # fmt: skip
        (tmp_path / name).write_text(text)
    assert [result["device"] for result in read_results(tmp_path)] == ["first", "d"]
    assert efficiency.applies(tmp_path)
    assert not efficiency.applies(tmp_path / "a.json")
    with pytest.raises(ValueError, match="nothing was measured, so there is nothing to show"):
        efficiency.contents(tmp_path)


# ---- the paper ----


def test_the_papers_rows_have_no_suite_and_count_from_zero():
    rows = paper_rows("gap")
    assert list(rows) == ["model", "pattern", "task", "value"]
    assert list(rows.index) == [0, 1, 2]
    assert PARAMETERS.keys() == {model.split()[-1] for model in rows["model"]}
    assert paper_rows("absent").empty


def test_axes_of_a_search_are_named():
    assert list(figures._AXES) == ["kv", "read", "flops", "latency"]
