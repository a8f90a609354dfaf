"""How many models and patterns a figure has room for, which these are, and what it says of the others."""

import pandas as pd
import pytest

from ratplus.analysis.compare import compare, differences, figure, join
from ratplus.analysis.frame.aggregate import first_runs, spread_patterns
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern


@pytest.mark.parametrize("models", [5, 6])
def test_five_models_are_drawn_and_the_rest_is_told(sweep, tmp_path, models):
    other = type(sweep)(tmp_path / "outputs" / "other")
    for folder, shift in ((sweep, 0.0), (other, 0.01)):
        for model in range(models):
            folder.add(f"ratplus_{model}", Pattern(4), folder.results(1.7 + shift))
    a, b = (load_sweep(folder.write()) for folder in (sweep, other))
    labels = [text.get_text() for text in figure(differences(a, b, join(a, b)), "a", "b").legends[0].get_texts()]
    left_out = ["5 of 6 models and variants; all: see table"] if models == 6 else []
    assert labels == [*(f"ratplus_{model}" for model in range(5)), *left_out]


def test_no_model_crowds_the_others_out():
    """Each model's first variant has room before the second one of any."""
    rows = pd.DataFrame({"run": ["a, x=1", "a, x=2", "a, x=3", "b, x=1", "b, x=2", "c"] * 2})
    for most, runs in ((3, ["a, x=1", "b, x=1", "c"]), (4, ["a, x=1", "a, x=2", "b, x=1", "c"])):
        kept, left_out = first_runs(rows, most)
        assert list(kept["run"]) == runs * 2
        assert left_out == f"{most} of 6 models and variants; all: see table"
    kept, left_out = first_runs(rows, 6)
    assert kept.equals(rows)
    assert left_out == ""


def test_patterns_are_left_out_evenly():
    """The first and the last stay, and a pattern that no row has takes no room."""
    names = [f"D{2**i}" for i in range(11)]
    rows = pd.DataFrame({"pattern": names[:10]})
    assert spread_patterns(names, rows, 4, "") == (["D1", "D8", "D64", "D512"], "4 of 10 patterns; all: see table")
    assert spread_patterns(names, rows, 10, "so far") == (names[:10], "so far")
    assert spread_patterns(names, rows, 2, "so far") == (
        ["D1", "D512"], "so far; 2 of 10 patterns; all: see table",
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["loss", "recall_accuracy"])
def test_sweeps_without_a_loss_have_a_table_and_no_figure(sweep, tmp_path, metric):
    for pattern in (Pattern(1), Pattern(4)):
        sweep.add("ratplus_tiny", pattern, {metric: (0.5, 0.1)})
    written = compare(sweep.write(), sweep.path, tmp_path / "out")
    endings = sorted(path.suffix for path in written)
    assert endings == sorted([".csv", ".html", ".md", ".tex"] + ([".pdf", ".png"] if metric == "loss" else []))
