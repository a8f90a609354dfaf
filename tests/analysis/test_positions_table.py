"""The table by position: means over bins, and what stands in the row of a cell that has no result."""

import pandas as pd
import pytest

from ratplus.analysis import positions
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern


@pytest.mark.parametrize("status", ["failed", "missing", "running"])
def test_an_unfinished_cell_says_its_status_and_others_their_numbers(sweep, status):
    bins = {f"loss_at_{low}_{low + 64}": (2.0 - low / 1024, 0.01) for low in range(0, 512, 64)}
    sweep.add("ratplus_tiny", Pattern(4), status=status)
    sweep.add("ratplus_tiny", Pattern(16), sweep.results(1.7) | bins)
    frame = load_sweep(sweep.write())
    shown = positions.summary(frame).set_index("Pattern")
    titles = [title for title in shown if title.startswith("Loss")]
    assert titles == ["Loss 0–63", "Loss 64–127", "Loss 128–255", "Loss 256–511"]
    assert list(shown.loc["D4", titles]) == [f"**{status}**", "—", "—", "—"]
    assert list(shown.loc["D16", titles]) == ["2.000", "1.938", "1.844", "1.656"]


@pytest.mark.parametrize(
    ("trained", "ends"),
    [
        (64, [64, 128, 256, 512]),
        (100, [512]),
        (192, [192, 384, 512]),
        (512, [64, 128, 256, 512]),
        (600, [64, 128, 256, 512]),
    ],
)
def test_stretches_are_the_trained_context_and_its_doublings(trained, ends):
    """Where the context is no longer than that, an eighth of it and the doublings of this."""
    bins = pd.DataFrame({"low": range(0, 512, 64), "high": range(64, 513, 64), "trained": float(trained)})
    assert positions.spans(bins) == list(zip([0, *ends], ends))


def test_bins_count_by_their_width(sweep):
    """Positions that no bin has do not count, and a stretch ends where a bin does."""
    losses = {"0_16": 4.0, "16_64": 2.0, "64_96": 1.0, "96_192": 3.0, "256_512": 1.5}
    bins = {f"loss_at_{ends}": (value, 0.01) for ends, value in losses.items()}
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7) | bins)
    (row,) = positions.summary(load_sweep(sweep.write())).to_dict("records")
    shown = {title: value for title, value in row.items() if title.startswith("Loss")}
    assert shown == {"Loss 0–63": "2.500", "Loss 64–511": "1.833"}


def test_points_stand_in_the_middle_of_their_bins_and_the_trained_context_is_marked(sweep):
    bins = {"loss_at_0_128": (2.5, 0.1), "loss_at_128_512": (1.5, 0.2), "recall_at_0_512": (0.75, 0.05)}
    bins |= {"recall_over_16_64": (0.5, 0.02), "recall_over_64_256": (0.25, 0.01)}
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7) | bins)
    frame = load_sweep(sweep.write())
    rows = positions.table(frame).assign(trained=128.0)
    drawing = positions.figure(frame, rows)
    loss, _, recall, _, over, _ = drawing.axes
    points, _, (bars,) = loss.containers[0]
    assert points.get_xydata().tolist() == [[64, 2.5], [320, 1.5]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[2.4, 2.6], [1.3, 1.7]]
    assert recall.containers[0][0].get_xydata().tolist() == [[256, 75]]
    assert recall.get_ylim() == (0, 104)
    # Distances double from bin to bin, so that the middle is the geometric one.
    assert over.containers[0][0].get_xydata().tolist() == [[32, 50], [128, 25]]
    assert [line.get_xdata() for line in loss.lines if len(set(line.get_xdata())) == 1] == [[128.0, 128.0]]
    assert not [line for line in over.lines if len(set(line.get_xdata())) == 1]
    told = [text.get_text() for legend in drawing.legends for text in legend.get_texts()]
    assert told[-1] == "trained: 128"
    shorter = positions.figure(frame, rows.assign(trained=512.0))
    assert not [line for line in shorter.axes[0].lines if len(set(line.get_xdata())) == 1]
