"""Needles by depth: what the table and the heat maps say of a sweep's cells."""

import numpy as np
import pytest

from ratplus.analysis import niah_depth
from ratplus.analysis import report as reports
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern

DEPTHS = ((0, 20), (20, 40), (40, 60), (60, 80), (80, 101))


def results(task: str, values, score: str = "substring") -> dict:
    """With other values of the other score, which none of the tables may show."""
    other = {"substring": "overlap", "overlap": "substring"}[score]
    found = {f"{task}_{score}_{low}_{high}": (value, 0.1) for (low, high), value in zip(DEPTHS, values)}
    if score == "substring":
        found |= {f"{task}_{other}_{low}_{high}": (0.123, 0.0) for low, high in DEPTHS}
    return found | {f"{task}_{score}": (sum(values) / 5, 0.05), f"{task}_{other}": (0.123, 0.0)}


def test_depths_of_each_pattern(sweep):
    for model in ("attention_tiny", "ratplus_tiny"):
        sweep.add(model, Pattern(), results("niah_single_1", (1.0, 0.9, 0.8, 0.7, 0.6)))
        sweep.add(model, Pattern(16), results("niah_single_1", (0.5, 0.4, 0.3, 0.2, 0.0)))
    sweep.add("ratplus_tiny", Pattern(64), status="failed")
    frame = load_sweep(sweep.write())
    assert niah_depth.applies(frame)
    shown = niah_depth.summary(frame)
    depths = ["0–20 %", "20–40 %", "40–60 %", "60–80 %", "80–100 %"]
    assert list(shown) == ["Model", "Pattern", *depths, "All (%)", "Δ all"]
    assert list(shown.iloc[1]) == ["attention_tiny", "D16", "50 ± 10", "40 ± 10", "30 ± 10", "20 ± 10", "0 ± 10",
                                   "28.0 ± 5.0", "−52.0"]  # fmt: skip
    assert list(shown.iloc[-1])[1:4] == ["D64", "**failed**", "—"]
    rows = niah_depth.table(frame)
    assert len(rows) == 5 * 5
    assert list(rows["depth_to"].unique()) == [20, 40, 60, 80, 100]
    drawing = niah_depth.figure(frame)
    maps = [axes.images[0].get_array() for axes in drawing.axes if axes.images and axes.get_title()]
    assert np.allclose(maps[0], [[100, 90, 80, 70, 60], [50, 40, 30, 20, 0]])
    assert np.isnan(maps[1].filled(np.nan) if np.ma.isMaskedArray(maps[1]) else maps[1])[2].all()


def test_several_tasks_are_rows_and_a_mean(sweep):
    both = results("niah_single_1", (1.0,) * 5) | results("niah_multikey_1", (0.5,) * 5)
    sweep.add("ratplus_tiny", Pattern(), both)
    sweep.add("ratplus_tiny", Pattern(4), results("niah_single_1", (1.0,) * 5))
    frame = load_sweep(sweep.write())
    shown = niah_depth.summary(frame)
    assert list(shown["Task"]) == ["multikey 1", "single 1"] * 2
    assert list(shown["80–100 %"]) == ["50 ± 10", "100 ± 10", "—", "100 ± 10"]
    (image,) = [axes.images[0] for axes in niah_depth.figure(frame).axes if axes.get_title()]
    assert np.allclose(image.get_array()[0], 75)
    assert np.ma.masked_invalid(image.get_array()).mask[1].all()  # a mean over both, or none


def test_records_that_have_the_papers_score_alone_by_depth(sweep):
    """Those of version 1 of the suite: one such cell, and the others are shown by that score too."""
    sweep.add("ratplus_tiny", Pattern(), results("niah_single_1", (1.0, 0.9, 0.8, 0.7, 0.6), "overlap"))
    frame = load_sweep(sweep.write())
    assert niah_depth.score(frame) == "overlap"
    assert list(niah_depth.summary(frame).iloc[0])[2:] == [
        "100 ± 10", "90 ± 10", "80 ± 10", "70 ± 10", "60 ± 10", "80.0 ± 5.0", "0.0"
    ]  # fmt: skip
    sweep.add("ratplus_tiny", Pattern(16), results("niah_single_1", (1.0,) * 5))
    frame = load_sweep(sweep.write())
    assert list(niah_depth.summary(frame)["0–20 %"]) == ["100 ± 10", "12"]
    assert "the paper's score" in niah_depth.contents(frame)[0].caption


def test_seeds_are_averaged(sweep):
    for seed, value in ((0, 0.2), (1, 0.4)):
        sweep.add("ratplus_tiny", Pattern(), results("niah_single_2", (value,) * 5), seed=seed)
    assert niah_depth.summary(load_sweep(sweep.write())).iloc[0]["0–20 %"] == "30 ± 10"


def test_where_no_needle_was_asked_for(sweep):
    sweep.add("ratplus_tiny", Pattern(), {"loss": 1.0, "niah_multiquery_overlap": 0.5})
    frame = load_sweep(sweep.write())
    assert not niah_depth.applies(frame)
    with pytest.raises(ValueError, match="no finished cell has NIAH accuracies by depth"):
        niah_depth.contents(frame)


def test_the_report_shows_it(sweep, monkeypatch):
    monkeypatch.setattr(reports, "MODULES", [niah_depth])
    sweep.add("ratplus_tiny", Pattern(), sweep.results(1.7, 0.9) | results("niah_single_1", (1.0,) * 5))
    paths = reports.report(sweep.write())
    assert {f"niah_depth.{end}" for end in ("md", "tex", "csv", "png", "pdf")} <= {path.name for path in paths}
    assert "Needles by depth (NIAH)" in paths[-1].read_text()
