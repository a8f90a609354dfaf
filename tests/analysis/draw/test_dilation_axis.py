"""Where each pattern stands on the axis of dilations, and what its ticks say."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from ratplus.analysis.draw.dilation_axis import DilationAxis


def points(*kinds: str, dilations=(1, 16, 64)) -> pd.DataFrame:
    """Dilated patterns, and one of each of these kinds."""
    rows = [(f"D{d}", "dilated", d) for d in dilations] + [(f"{k}{i}", k, None) for i, k in enumerate(kinds)]
    frame = pd.DataFrame(rows, columns=["pattern", "kind", "dilation"])
    return frame.astype({"dilation": "Int64"})


def drawn(rows: pd.DataFrame) -> tuple[list[float], list[str], list[float]]:
    """(places of the ticks, their names, the x of the rule between dilations and the rest)."""
    axis, axes = DilationAxis(rows), Figure().subplots()
    axis.draw([axes])
    names = [label.get_text() for label in axes.get_xticklabels()]
    return list(axes.get_xticks()), names, [line.get_xdata()[0] for line in axes.lines]


@pytest.mark.parametrize("others", [1, 6, 7])
def test_up_to_six_others_have_a_place_each(others):
    rows = points(*["hybrid"] * others)
    axis = DilationAxis(rows)
    few = others <= 6
    assert axis.others == ({f"hybrid{i}": f"H{i + 1}" for i in range(others)} if few else {})
    places = axis.positions(rows)
    assert places[:3] == [1, 16, 64]
    assert len(set(places)) == 3 + (others if few else 1)
    assert min(places[3:]) > 64
    assert drawn(rows)[1][-1] == (f"H{others}" if few else "hybrid")


def test_hybrids_and_selecting_patterns_are_counted_apart_and_share_a_place_as_others():
    rows = points("topk", "hybrid", "quest", "streaming", "hybrid")
    assert DilationAxis(rows).others == {"hybrid1": "H1", "hybrid4": "H2", "topk0": "S1", "quest2": "S2"}
    ticks, names, (rule,) = drawn(rows)
    assert names == ["1", "4", "16", "64", "none", "H1", "H2", "S1", "S2"]
    assert ticks == sorted(ticks)
    assert 64 < rule < ticks[names.index("none")]
    assert drawn(points(*["hybrid"] * 4, *["topk"] * 4))[1][-1] == "other"


def test_the_title_tells_what_none_means():
    assert DilationAxis(points()).title == "Dilation $D$"
    assert DilationAxis(points("streaming")).title == "Dilation $D$  (none: streaming)"
    assert drawn(points()) == ([2.0**i for i in range(7)], [str(2**i) for i in range(7)], [])
    assert drawn(points("streaming", dilations=()))[1:] == (["none"], [])
