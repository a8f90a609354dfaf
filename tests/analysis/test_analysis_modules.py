"""Every module: what it writes for a sweep that has everything, as a function, as a script and as a notebook."""

import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ratplus.analysis import report as reports
from ratplus.analysis.draw import style
from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.page import notebook as runner
from ratplus.pattern import Pattern

NAMES = [module.NAME for module in reports.MODULES]
MODULES = {module.NAME: module for module in reports.MODULES}
# Those that only show patterns that select by query.
SELECTING = ("accuracy_vs_budget", "selection_hits")


@pytest.fixture
def folder_for(everything, selecting):
    """Gives the sweep that a module has something to show of."""
    return lambda name: selecting if name in SELECTING else everything


def test_every_module_applies_and_writes(reported, selecting):
    names = {path.name for path in reported} | {path.name for path in reports.report(selecting)}
    for name in NAMES:
        mine = {found for found in names if found.startswith(name)}
        assert {found.rpartition(".")[2] for found in mine} >= {"md", "tex", "csv"}, name
        if name != "pattern_tables":
            assert {f"{name}.png", f"{name}.pdf"} <= mine
    assert {f"pattern_tables_{suite}.csv" for suite in ("recall", "commonsense", "niah", "other")} <= names
    assert reported[-1].name == "index.html"
    assert all(path.exists() for path in reported)


def test_csv_columns_are_unique_and_tables_have_rows(reported):
    for path in reported:
        if path.suffix == ".csv":
            data = pd.read_csv(path)
            assert len(data), path.name
            assert not [name for name in data.columns if re.search(r"\.\d+$", name)], (
                path.name
            )  # pandas' mark of doubles


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_of_all_tables_compiles_and_fits(reported, tmp_path):
    inputs = "\n".join(rf"\input{{{path.as_posix()}}}" for path in reported if path.suffix == ".tex")
    # Of a paper's width; the files bring their own size when they are compiled alone.
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\setlength{\textwidth}{6.75in}\setlength{\textheight}{9.5in}"
        rf"\begin{{document}}{inputs}\end{{document}}"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(MODULES[name], "figure")])
def test_figures_keep_to_the_page_and_titles_do_not_touch(folder_for, name):
    figure = MODULES[name].figure(load_sweep(folder_for(name)))
    assert figure.get_figwidth() in (style.COLUMN_WIDTH_IN, style.TEXT_WIDTH_IN)
    with style.context():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible() and axes.axison]
        legends = [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in [*boxes, *legends]:
        assert box.x0 >= figure.bbox.x0 - 1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= figure.bbox.y0 - 1
        assert box.y1 <= figure.bbox.y1 + 1
    for legend in legends:
        assert not any(legend.overlaps(box) for box in boxes)
    for axes in figure.axes:
        for side in (axes.xaxis, axes.yaxis):
            shown = [t.get_window_extent(renderer) for t in side.get_ticklabels() if t.get_text() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in pairwise(shown))


@pytest.mark.parametrize("name", NAMES)
def test_as_a_script_a_wrong_folder_is_one_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "absent")])
    module = MODULES[name].__name__
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_runs_as_a_script(demo, tmp_path, monkeypatch, capsys, elsewhere):
    folder = tmp_path if elsewhere else demo / "report"
    monkeypatch.setattr(sys, "argv", ["masks", str(demo), *([str(tmp_path)] if elsewhere else [])])
    monkeypatch.delitem(sys.modules, "ratplus.analysis.masks")
    runpy.run_module("ratplus.analysis.masks", run_name="__main__")
    paths = [folder / f"masks.{suffix}" for suffix in ("md", "tex", "csv", "png", "pdf")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    for path in paths:
        assert path.stat().st_size > 100
        path.unlink()


def test_a_folder_that_cannot_be_written_is_one_line(demo, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["masks", str(demo), str(tmp_path / "file" / "report")])
    monkeypatch.delitem(sys.modules, "ratplus.analysis.masks")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ratplus.analysis.masks", run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("name", NAMES)
def test_opens_and_runs_as_a_notebook(folder_for, name, monkeypatch):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(MODULES[name].__file__)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    shown = []
    monkeypatch.setenv("RATPLUS_SWEEP", str(folder_for(name)))
    monkeypatch.setattr(runner, "in_notebook", lambda: True)
    monkeypatch.setattr(runner, "display_files", shown.extend)
    # Drawn, but not rendered to files: that takes most of the time, and `reported` has done it.
    monkeypatch.setattr(style, "save", lambda figure, stem: [stem.with_suffix(end) for end in (".png", ".pdf")])
    space = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), space)
    assert shown


def test_a_notebook_displays_tables_and_figures(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("| Δ |", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    shown = []
    here = SimpleNamespace(display=lambda data, raw: shown.append((data, raw)))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None, display=here))
    assert not runner.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: "a shell")
    assert runner.in_notebook()
    runner.display_files([tmp_path / "a.md", tmp_path / "a.tex", tmp_path / "a.csv", tmp_path / "a.png"])
    assert shown == [({"text/markdown": "| Δ |"}, True), ({"image/png": "iVBORw=="}, True)]


def test_modules_without_their_data_say_so_in_one_line(sweep):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.7})
    frame = load_sweep(sweep.write())
    applying = [name for name, module in MODULES.items() if module.applies(frame)]
    assert applying == ["accuracy_vs_dilation", "masks"]
    for name in ("pattern_tables", "ablation", "scaling_gap", "sensitivity", "adaptation_curves", "recurrence"):
        with pytest.raises(ValueError) as caught:
            MODULES[name].contents(frame)
        assert "\n" not in str(caught.value)


def test_files_of_modules_that_no_longer_apply_are_removed(sweep):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.7})
    target = sweep.write() / "report"
    target.mkdir()
    for name in (
        "pareto.png",
        "pattern_tables_recall.md",
        "pattern_tables_recall.csv",
        "compare_x.md",
        "masks_mine.md",
    ):
        (target / name).write_text("old")
    reports.report(sweep.path)
    left = {path.name for path in target.iterdir()}
    assert not {"pareto.png", "pattern_tables_recall.md", "pattern_tables_recall.csv"} & left
    assert {"compare_x.md", "masks_mine.md"} <= left


def test_runs_that_were_asked_for_different_things(sweep):
    """One has losses, one recall, one needles, one nothing: each figure draws what is there and leaves out the rest."""
    asked = {
        ("ratplus_tiny", 0): {"loss": (1.7, 0.01)},
        ("ratplus_tiny", 400): {"niah_single_1": (0.5, 0.1)},
        ("attention_tiny", 0): {"recall_accuracy": (0.9, 0.02)},
        ("attention_tiny", 400): {},
    }
    for (model, steps), metrics in asked.items():
        for pattern in (Pattern(1), Pattern(4), Pattern(16), Pattern(None, window=16), Pattern(top=4, block=4)):
            tasks = ["niah_single_1"] if steps else []
            sweep.add(model, pattern, metrics, axes={"train.sft.steps": steps, "eval.niah.tasks": tasks})
    frame = load_sweep(sweep.write())
    assert sorted(set(frame["variant"])) == ["train.sft.steps=0", "train.sft.steps=400"]
    written = {path.name for path in reports.report(sweep.path)}
    assert {"accuracy_vs_budget.png", "accuracy_vs_dilation.png", "pareto.png", "index.html"} <= written
    pareto = MODULES["pareto"].figure(frame)
    lines = [sum(len(line.get_xdata()) for line in axes.get_lines()) for axes in pareto.axes]
    assert all(lines), "every panel has the points of the one model that was asked"
