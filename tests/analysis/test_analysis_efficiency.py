"""Tables and figures of benchmark files: ratios, what is missing, overlaps, and the three ways to run the module."""

import json
import runpy
import sys

import pandas as pd
import pytest
from matplotlib.text import Text

from ratplus.analysis import efficiency
from ratplus.analysis.draw import style
from ratplus.analysis.draw.efficiency import kernels_figure, lengths_figure, models_figure
from ratplus.analysis.draw.output import write
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.efficiency import kernels_table, models_table, skipped, write_results
from ratplus.analysis.frame.bench_results import read_results

PATTERNS = ["D1", "D4", "D16", "D64", "D16-W256", "stream-W1024-I4"]


def kernel_row(op, shape, pattern, candidate, ms, limit=1.0):
    return {
        "op": op, "shape": shape, "pattern": pattern, "candidate": candidate, "ms_p50": ms, "ms_p20": 0.9 * ms,
        "ms_p80": 1.2 * ms, "repeats": 7, "gb_s": 10.0, "tflop_s": 1.0, "bandwidth_fraction": 0.2,
        "matmul_fraction": limit / ms, "limit_ms": limit, "peak_bytes": 1 << 20,
    }  # fmt: skip


def kernels(lengths=(4096, 16384), long=16384):
    """As `bench kernels` writes it; from `long` on dense attention is timed once."""
    rows = [kernel_row("scan forward", "B1 T4096 d64", "-", name, 4.0) for name in ("ours", "paper (associative_scan)")]
    for length in lengths:
        shape = f"B1 T{length} d64"
        for i, pattern in enumerate(PATTERNS):
            if not (pattern == "D1" and length >= long):
                rows.append(kernel_row("attention forward", shape, pattern, "ours", length / 64 / (i + 1)))
            if pattern == "D1" or length < long:
                rows.append(kernel_row("attention forward", shape, pattern, "dense SDPA", length / 64))
            rows += [kernel_row("decode", f"B{b} T{length} d64", pattern, "ours", b / (i + 2), 0.1) for b in (1, 8)]
    left = [{"op": "decode", "shape": "B9", "pattern": p, "candidate": "ours", "reason": "too large"} for p in PATTERNS]
    return {
        "benchmark": "kernels", "complete": True, "device": "GPU X", "torch": "2.0", "threads": 2, "dtype": "float32",
        "date": "2026-01-01", "ceilings": {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0}, "rows": rows, "skipped": left,
    }  # fmt: skip


def models(patterns=(*PATTERNS, "layers[D1,D64]", "heads[D64,D1,D64,D1]")):
    rows = []
    for model in ("ratplus_tiny", "attention_tiny"):
        for context in (496, 4080):
            for batch, largest in ((1, False), (8, False), (100, True)):
                for i, pattern in enumerate(patterns):
                    prefill = None if largest else 10.0 / (i + 1)
                    rows.append({
                        "model": model, "parameters": 100, "recurrence": True, "pattern": pattern, "batch": batch,
                        "context": context, "new_tokens": 16, "largest": largest, "prefill_ms_p50": prefill,
                        "prefill_ms_p20": prefill, "prefill_ms_p80": prefill, "prefill_repeats": 7,
                        "decode_ms_p50": 2.0 * batch, "decode_ms_p20": 1.9 * batch, "decode_ms_p80": 2.5 * batch,
                        "decode_repeats": 7, "decode_path": "plain loop", "tokens_per_second": 500.0,
                        "kv_bytes": 1 << 20, "kv_bytes_formula": 1 << 20, "state_bytes": 1024, "max_batch": 100,
                        "prefill_peak_bytes": None, "decode_peak_bytes": 1,
                        "prefill_limit_ms": None if largest else 1.0, "decode_limit_ms": 1.0 * batch,
                        "prefill_ratio": None if largest else 1 / (i + 1), "decode_ratio": 1.0, "kv_ratio": 1.0,
                    })  # fmt: skip
    return kernels() | {"benchmark": "model", "rows": rows, "skipped": []}


def texts_overlap(figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [(t.get_text(), t.get_window_extent()) for t in texts if not t.axes or t.axes.get_visible()]
    boxes = [(text, box.padded(-1)) for text, box in shown if box.width > 2 and box.height > 2]
    return [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a[1].overlaps(b[1])]


def test_ratio_is_to_dense_attention_of_the_same_shape_wherever_it_was_timed():
    rows = kernels_table([kernels()]).set_index(["op", "shape", "pattern", "candidate"])
    assert rows.loc[("attention forward", "B1 T4096 d64", "D4", "ours"), "dense_ratio"] == 0.5
    # Timed once, with the dense pattern.
    assert rows.loc[("attention forward", "B1 T16384 d64", "D64", "ours"), "dense_ratio"] == 0.25
    assert pd.isna(rows.loc[("scan forward", "B1 T4096 d64", "-", "ours"), "dense_ratio"])
    assert rows.loc[("scan forward", "B1 T4096 d64", "-", "ours"), "limit_fraction"] == 0.25


def test_ratio_is_to_the_fastest_of_several_dense_kernels_in_whatever_order_they_stand():
    result = kernels()
    for row in list(result["rows"]):
        if row["candidate"] == "dense SDPA":
            row["candidate"] = "dense SDPA (flash)"
            quick = kernel_row(row["op"], row["shape"], row["pattern"], "dense SDPA (cudnn)", row["ms_p50"] / 2)
            result["rows"].append(quick)
    for rows in (result["rows"], result["rows"][::-1]):
        table = kernels_table([result | {"rows": rows}])
        ours = table[table["candidate"].eq("ours")].set_index(["op", "shape", "pattern"])["dense_ratio"]
        assert ours["attention forward", "B1 T4096 d64", "D4"] == 1.0
        assert ours["attention forward", "B1 T16384 d64", "D64"] == 0.5  # timed once, with the dense pattern
        line = next(line for line in lengths_figure(table).axes[0].lines if line.get_marker() == "x")
        assert list(line.get_ydata()) == [32.0, 128.0]
        labels = {text.get_text() for text in kernels_figure(table).legends[0].get_texts()}
        assert {"dense SDPA (cudnn)", "dense SDPA (flash)"} <= labels


def test_files_of_a_folder(tmp_path):
    (tmp_path / "k.json").write_text(json.dumps(kernels()))
    (tmp_path / "m.json").write_text(json.dumps(models()))
    (tmp_path / "other.json").write_text("[]")
    written = write(efficiency.contents(tmp_path), tmp_path / "report")
    assert {path.name for path in written} == {
        *(f"efficiency_{what}.{kind}" for what in ("kernels", "models") for kind in ("md", "tex", "csv", "png", "pdf")),
        "efficiency_lengths.png", "efficiency_lengths.pdf",
    }  # fmt: skip
    assert {path.parent for path in written} == {tmp_path / "report"}
    text = (tmp_path / "report" / "efficiency_kernels.md").read_text()
    assert "GPU X (float32, 2 threads, torch 2.0)" in text
    assert "Not measured (too large): decode B9 D1 ours; decode B9 D4 ours; decode B9 D16 ours; and 3 more." in text
    frame = pd.read_csv(tmp_path / "report" / "efficiency_models.csv")
    assert len(frame) == 2 * 2 * 3 * 8
    assert frame["prefill_ms_p50"].isna().sum() == 2 * 2 * 8


def test_a_cut_off_run_says_so():
    assert skipped([kernels() | {"complete": False, "skipped": []}], "kernels") == [
        "Not measured (the run was cut off): everything after the last row."
    ]


def test_no_text_overlaps():
    rows, both = kernels_table([kernels()]), models_table([models()])
    for figure in (kernels_figure(rows), lengths_figure(rows), models_figure(both)):
        assert texts_overlap(figure) == []


def test_one_length_has_no_figure_over_lengths():
    assert lengths_figure(kernels_table([kernels(lengths=(4096,))])) is None


def test_a_long_table_is_cut_in_print_but_not_in_the_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save", lambda figure, stem: [])  # drawn, but not rendered
    long = kernels(lengths=tuple(range(64, 64 * 40, 64)))
    write_results([long], tmp_path)
    assert len(pd.read_csv(tmp_path / "efficiency_kernels.csv")) == len(long["rows"])
    more = len(long["rows"]) - efficiency.MOST_ROWS
    assert f"{more} more rows: see the CSV file." in (tmp_path / "efficiency_kernels.tex").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [1]}, {"rows": [{}]}, {"device": [1]}, {"complete": 1}, {"skipped": 7}, {"skipped": [{"reason": 1}]},
        {"skipped": [{"reason": "x"}, {"reason": 1}]}, {"skipped": [{"reason": "x"}, 1]},
        {"rows": [{"op": "scan", "ms_p50": "fast"}]},
    ],
)  # fmt: skip
def test_a_benchmark_of_other_types_is_damaged(tmp_path, change):
    """The folder may be a stranger's: a report leaves the file out, and names it."""
    whole = {"benchmark": "kernels", "complete": True, "device": "d", "torch": "t", "threads": 1, "dtype": "float32",
             "rows": [], "skipped": []}  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(whole))
    assert len(read_results(tmp_path)) == 1
    (tmp_path / "x.json").write_text(json.dumps(whole | change))
    with pytest.raises(ValueError, match=r"x.json: damaged"):
        read_results(tmp_path)


def test_a_damaged_row_is_told_by_its_number_from_one_on(tmp_path):
    good = kernel_row("scan forward", "B1", "-", "ours", 4.0)
    lacks = {key: value for key, value in good.items() if key != "ms_p80"}
    for bad, said in ((lacks, "has no ms_p80"), (good | {"ms_p80": "4"}, ": ms_p80 is a str"), (7, " is a int")):
        (tmp_path / "x.json").write_text(json.dumps(kernels() | {"rows": [good, bad]}))
        with pytest.raises(ValueError, match=rf"x\.json: damaged \(row 2 ?{said}\); measure it again"):
            read_results(tmp_path / "x.json")


def test_what_is_no_benchmark(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_results(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="holds no JSON file"):
        read_results(tmp_path)
    (tmp_path / "x.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="not a JSON file of `ratplus bench"):
        read_results(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_results(tmp_path / "x.json")
    with pytest.raises(ValueError, match="nothing was measured"):
        write_results([kernels() | {"rows": []}], tmp_path)


def test_as_a_script(tmp_path, monkeypatch, capsys):
    (tmp_path / "k.json").write_text(json.dumps(kernels(lengths=(4096,))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ratplus.analysis.efficiency")
    monkeypatch.setattr(sys, "argv", ["efficiency", "k.json", "out"])
    runpy.run_module("ratplus.analysis.efficiency", run_name="__main__")
    assert "out/efficiency_kernels.png" in capsys.readouterr().out.split()
    monkeypatch.setattr(sys, "argv", ["efficiency", "none.json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ratplus.analysis.efficiency", run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: none.json: no such file or folder")
    assert error.count("\n") == 1


def test_as_a_notebook(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(efficiency.__file__)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= 3
    assert kinds[-1] == "code"


def test_names_of_what_was_measured_stand_left_and_numbers_right(monkeypatch, tmp_path):
    for drawing in ("kernels_figure", "lengths_figure", "models_figure"):
        monkeypatch.setattr(efficiency, drawing, lambda _frame: None)
    for number, result in enumerate((kernels(), models())):
        (tmp_path / f"{number}.json").write_text(json.dumps(result))
    tables = {part.name: part for part in efficiency.contents(tmp_path) if isinstance(part, Table)}
    assert {name: list(table.shown)[: table.names] for name, table in tables.items()} == {
        "efficiency_kernels": ["Operator", "Pattern", "Candidate"], "efficiency_models": ["Model", "Pattern"],
    }  # fmt: skip
