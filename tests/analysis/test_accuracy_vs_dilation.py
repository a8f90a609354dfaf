"""The accuracy-against-dilation table and figure, for whole, broken, small and large sweeps."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ratplus.analysis import accuracy_vs_dilation as module
from ratplus.analysis.draw import style
from ratplus.analysis.draw.latex import to_latex
from ratplus.analysis.draw.output import write
from ratplus.analysis.draw.tables import to_markdown
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.page import notebook as runner
from ratplus.pattern import Pattern, PatternMap

SUFFIXES = [".md", ".tex", ".csv", ".png", ".pdf"]
REQUIRED = [
    "model", "pattern", "dilation", "window", "sinks", "seed", "loss", "loss_stderr", "loss_delta", "perplexity",
    "next_token_accuracy", "recall_accuracy", "kv_entries", "attention_flops_ratio", "status",
]  # fmt: skip


def rows_of(markdown: str) -> list[list[str]]:
    """Cells of a Markdown table's body."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def written(demo) -> list[Path]:
    """What the module writes for the demo."""
    return write(module.contents(load_sweep(demo)), demo / "report")


def markdown_of(folder: Path) -> str:
    """The module's table of a sweep, as text."""
    return to_markdown(module.contents(load_sweep(folder))[0])


def texts_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_writes_all_files_of_a_finished_sweep(demo, written):
    assert written == [demo / "report" / f"accuracy_vs_dilation{suffix}" for suffix in SUFFIXES]
    assert all(path.stat().st_size > 500 for path in written)
    assert sorted(path.name for path in (demo / "report").iterdir()) == sorted(path.name for path in written)


def test_csv_has_the_promised_columns_and_every_cell(written):
    data = pd.read_csv(written[2])
    assert set(REQUIRED) < set(data.columns)
    assert "recall_accuracy_1_64" in data
    assert len(data) == 22
    cell = data[data["model"].eq("ratplus_tiny") & data["pattern"].eq("D64")].iloc[0]
    assert cell["loss_delta"] == pytest.approx(1.684 - 1.669)
    assert cell["kv_entries"] == 8


def test_markdown_is_grouped_ordered_and_rounded(written):
    text = written[0].read_text()
    rows = rows_of(text)
    assert [row[1] for row in rows[:11]] == [
        *(f"D{d}" for d in (1, 2, 4, 8, 16)), "D16-W64", "D32", "D64", "stream-W64-I4",
        "layers[D1,D64x2,D1]", "heads[D1,D64x3]",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["attention_tiny"] + [""] * 10 + ["ratplus_tiny"] + [""] * 10
    assert rows[0][2:] == ["1.740 ± 0.006", "0.000", "5.70", "51.7 ± 0.2", "99.0 ± 1.2", "512", "1.000"]
    assert rows[7][3] == "0.820"
    assert "Seeds" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_fits(written, tmp_path):
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-output-directory", str(tmp_path)]
    command.append(str(written[1]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_cells_without_a_result_are_marked_everywhere(sweep):
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.67, 0.9))
    sweep.add("ratplus_tiny", Pattern(2), sweep.results(1.68, 0.8))
    for dilation, status in ((4, "failed"), (8, "running"), (16, "missing"), (32, "damaged")):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7), status=status, message="x\nboom_1 | 50%")
    frame = load_sweep(sweep.write())
    table, picture = module.contents(frame)
    text = to_markdown(table)
    assert [row[2] for row in rows_of(text)[2:]] == ["**failed**", "**running**", "**missing**", "**damaged**"]
    assert rows_of(text)[2][3:7] == ["—"] * 4
    assert "2 of 6 cells finished (1 damaged, 1 failed, 1 running, 1 missing)." in text
    assert r"ratplus_tiny D4 (seed 0) failed: RuntimeError: boom_1 \| 50%" in text
    assert r"boom\_1 $|$ 50\%" in to_latex(table)
    assert list(table.data["status"]) == ["done", "done", "failed", "running", "missing", "damaged"]
    assert "no result" in texts_of(picture.figure)
    crosses = [line for line in picture.figure.axes[0].lines if line.get_marker() == "x"]
    assert sorted(x for line in crosses for x in line.get_xdata()) == [4, 8, 16, 32]


def test_seeds_become_mean_and_standard_error(sweep):
    losses = {0: (1.60, 1.62), 1: (1.70, 1.73), 2: (1.65, 1.69)}
    for seed, (dense, sparse) in losses.items():
        sweep.add("ratplus_tiny", Pattern(1), sweep.results(dense), seed=seed)
        sweep.add("ratplus_tiny", Pattern(8), sweep.results(sparse), seed=seed)
        sweep.add("ratplus_tiny", Pattern(16), sweep.results(1.8), seed=seed, status="done" if seed else "failed")
        sweep.add("ratplus_tiny", Pattern(32), sweep.results(1.9), seed=seed, status="failed" if seed else "done")
    text = markdown_of(sweep.write())
    rows = rows_of(text)
    assert [row[2] for row in rows] == ["3", "3", "2 of 3", "1 of 3"]
    spread = pd.Series([1.62, 1.73, 1.69]).sem()
    assert rows[1][3] == f"1.680 ± {spread:.3f}"
    assert rows[1][4] == f"0.030 ± {pd.Series([0.02, 0.03, 0.04]).sem():.3f}"
    assert rows[2][3] == "1.800"  # equal seeds: no spread to speak of
    assert rows[3][3:5] == ["1.900 ± 0.006", "0.300"]  # one seed: the evaluation's own error
    assert "over 3 seeds" in text
    assert "ratplus_tiny D32 (seed 1, 2) failed" in text
    assert "Recall (%)" not in text


def test_a_diverged_seed_is_not_averaged_away(sweep):
    for seed, loss in enumerate((1.7, float("nan"))):
        sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.6), seed=seed)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(loss), seed=seed)
    sweep.add("ratplus_tiny", Pattern(8), sweep.results(float("inf")))
    text = markdown_of(sweep.write())
    # A cell that diverged is a failed one: it is counted and named, and has no loss.
    assert [row[2:4] for row in rows_of(text)] == [
        ["2", "1.600"],
        ["1 of 2", "1.700 ± 0.006"],
        ["0 of 1", "**failed**"],
    ]
    assert "ratplus_tiny D4 (seed 1) failed: loss=nan" in text
    assert "3 of 5 cells finished (2 failed)." in text


def test_a_finished_seed_without_a_number_leaves_the_mean_without_one(sweep):
    for seed, recall in enumerate((0.5, float("nan"))):
        sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.6, 0.9), seed=seed)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7, recall), seed=seed)
    rows = rows_of(markdown_of(sweep.write()))
    assert [row[2] for row in rows] == ["2", "2"]
    assert [row[3] for row in rows] == ["1.600", "1.700"]
    assert [row[-3] for row in rows] == ["90.0", "—"]


def test_delta_needs_the_dense_cell_of_the_same_model_seed_and_variant(sweep):
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.6), axes={"train.lr": 1})
    sweep.add("ratplus_tiny", Pattern(1, 64), sweep.results(1.5), axes={"train.lr": 1})
    sweep.add("ratplus_tiny", Pattern(8), sweep.results(1.7), axes={"train.lr": 1})
    sweep.add("ratplus_tiny", Pattern(8), sweep.results(1.7), axes={"train.lr": 2})
    sweep.add("ratplus_tiny", Pattern(8), sweep.results(1.7), axes={"train.lr": 1}, seed=1)
    sweep.add("attention_tiny", Pattern(8), sweep.results(1.7), axes={"train.lr": 1})
    data = module.table(load_sweep(sweep.write()))
    deltas = {(row.model, row.variant, row.seed, row.pattern): row.loss_delta for row in data.itertuples()}
    assert deltas.pop(("ratplus_tiny", "train.lr=1", 0, "D8")) == pytest.approx(0.1)
    assert deltas.pop(("ratplus_tiny", "train.lr=1", 0, "D1-W64")) == pytest.approx(-0.1)
    assert deltas.pop(("ratplus_tiny", "train.lr=1", 0, "D1")) == 0
    assert pd.Series(deltas).isna().all()


def test_figure_shows_dilations_streaming_and_hybrids(demo):
    figure = module.figure(load_sweep(demo))
    top, bottom = figure.axes
    assert top.get_xscale() == "log"
    ticks = [label.get_text() for label in bottom.get_xticklabels()]
    assert ticks == ["1", "2", "4", "8", "16", "32", "64", "none", "H1", "H2"]
    places = list(bottom.get_xticks())
    assert places[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert places == sorted(places)
    assert [top.get_ylabel().split("\n")[0], bottom.get_ylabel().split("\n")[0]] == ["Held-out loss", "Recall"]
    assert texts_of(figure) == [
        "attention_tiny", "ratplus_tiny", "same model, dense", "$W$ = 0", "$W$ = 64", "$W$ = 64, $I$ = 4",
        "H1: layers[D1,D64x2,D1]", "H2: heads[D1,D64x3]",
    ]  # fmt: skip
    whole = [line for line in top.lines if len(line.get_xdata()) == 7 and line.get_linestyle() != "None"]
    assert [tuple(line.get_xdata()) for line in whole] == [(1, 2, 4, 8, 16, 32, 64)] * 2
    looks = [(line.get_color(), line.get_linestyle(), line.get_markerfacecolor()) for line in whole]
    assert all(one != other for one, other in zip(*looks, strict=True))  # told apart by colour, by line and by marker


def test_nothing_overlaps_and_nothing_is_cut_off(demo):
    figure = module.figure(load_sweep(demo))
    with style.context():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        legend = figure.legends[0].get_window_extent(renderer)
        panels = [axes.get_tightbbox(renderer) for axes in figure.axes]
        ticks = [label.get_window_extent(renderer) for label in figure.axes[-1].get_xticklabels()]
    whole = figure.bbox
    for box in [legend, *panels]:
        assert box.x0 >= whole.x0 - 1
        assert box.x1 <= whole.x1 + 1
        assert box.y0 >= whole.y0 - 1
        assert box.y1 <= whole.y1 + 1
    assert not any(legend.overlaps(panel) for panel in panels)
    assert not panels[0].overlaps(panels[1])
    assert not any(left.overlaps(right) for left, right in pairwise(ticks))
    assert figure.get_figwidth() == style.COLUMN_WIDTH_IN


def test_files_are_reproducible_whatever_the_users_matplotlib_settings(demo, written, tmp_path):
    before = [path.read_bytes() for path in written]
    assert b"/FontFile2" in before[-1]  # TrueType, embedded
    assert b"/Type3" not in before[-1]
    assert int.from_bytes(before[3][16:20], "big") == round(style.COLUMN_WIDTH_IN * 200)  # the PNG's width
    matplotlib.rcParams["font.size"] = 31
    try:
        again = write(module.contents(load_sweep(demo)), tmp_path)
        assert [path.read_bytes() for path in again] == before
        assert matplotlib.rcParams["font.size"] == 31
    finally:
        matplotlib.rcdefaults()


def test_lines_have_gaps_where_a_cell_has_no_result(sweep):
    for dilation in (1, 2, 4, 8):
        status = "failed" if dilation == 4 else "done"
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7, 0.5), status=status)
    line = next(line for line in module.figure(load_sweep(sweep.write())).axes[0].lines if len(line.get_xdata()) == 4)
    assert list(pd.isna(line.get_ydata())) == [False, False, True, False]


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(16), Pattern(3, 64), Pattern(None, 64, 4), "hybrid"])
def test_a_single_cell(sweep, pattern):
    pattern = PatternMap.per_layer([Pattern(d) for d in (1, 2, 4, 8)], 4) if pattern == "hybrid" else pattern
    sweep.add("ratplus_tiny", pattern, sweep.results(1.7))
    table, picture = module.contents(load_sweep(sweep.write()))
    assert len(table.shown) == 1
    assert "1.700 ± 0.006" in list(table.shown["Loss"])
    assert any(len(line.get_xdata()) == 1 for line in picture.figure.axes[0].lines)


def test_no_finished_cell_gives_tables_and_one_line(sweep, caplog):
    sweep.add("ratplus_tiny", Pattern(4), status="failed")
    sweep.add("ratplus_tiny", Pattern(8), status="missing")
    report = sweep.write() / "report"
    report.mkdir()
    (report / "accuracy_vs_dilation.png").write_text("of an earlier report")
    paths = write(module.contents(load_sweep(sweep.path)), report)
    assert [path.suffix for path in paths] == SUFFIXES[:3]
    assert [record.message for record in caplog.records] == [
        "accuracy_vs_dilation: no figure: 0 of 2 cells finished (1 failed, 1 missing), none with a finite loss"
    ]
    assert not (report / "accuracy_vs_dilation.png").exists()


def test_no_cells_at_all(sweep):
    with pytest.raises(ValueError, match="no cells"):
        module.contents(load_sweep(sweep.write()))


def test_next_token_accuracy_stands_in_where_there_is_no_recall_task(sweep):
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    figure = module.figure(load_sweep(sweep.write()))
    assert figure.axes[1].get_ylabel().startswith("Next-token")
    sweep.cells.clear()
    sweep.add("ratplus_tiny", Pattern(8), {"loss": 1.7})
    assert len(module.figure(load_sweep(sweep.write())).axes) == 1


def test_long_hybrid_labels_are_named_and_many_hybrids_share_a_place(sweep):
    sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.7))
    for last in range(1, 10):
        rows = [[Pattern(1), Pattern(4), Pattern(1), Pattern(2)], [Pattern(last), Pattern(1), Pattern(4), Pattern(1)]]
        patterns = PatternMap(tuple(tuple(row) for row in rows * 2))
        sweep.add("ratplus_tiny", patterns, sweep.results(1.7), pattern_name="searched")
    frame = load_sweep(sweep.write())
    shown = module.summary(frame)
    assert list(shown["Pattern"][1:4]) == ["searched", "searched 2", "searched 3"]
    assert module.notes(frame)[0].startswith("searched: mixed[D1,D4,D1,D2|")
    figure = module.figure(frame)
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["1", "hybrid"]
    assert "hybrids (see table)" in texts_of(figure)


def test_opens_and_runs_as_a_notebook(demo, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(module.__file__)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= 3
    assert notebook.cells[0].source.startswith("# Accuracy against dilation")
    assert not any(cell.cell_type == "code" and cell.source.lstrip().startswith('"""') for cell in notebook.cells)
    shown = []
    monkeypatch.setenv("RATPLUS_SWEEP", str(demo))
    monkeypatch.setattr(runner, "in_notebook", lambda: True)
    monkeypatch.setattr(runner, "display_files", shown.extend)
    space = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "cell", "exec"), space)
    assert [path.suffix for path in shown] == SUFFIXES
    assert len(space["table"](load_sweep(demo))) == 22
