"""What three figures look like, against baseline images (pytest-mpl).

After a change that is meant, make them again and look at them:
`pytest tests/analysis/test_analysis_images.py --mpl-generate-path=tests/analysis/baseline`.
"""

import pytest

from ratplus.analysis import accuracy_vs_dilation, pareto, sensitivity
from ratplus.analysis.draw import style
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern, PatternMap

pytest.importorskip("pytest_mpl")

# Root mean square over grey levels (0 to 255): room for another version's text, none for a moved line.
LOOK = {
    "baseline_dir": "baseline", "tolerance": 4, "style": str(style.STYLE_FILE), "savefig_kwargs": {"dpi": 70},
    "deterministic": True,
}  # fmt: skip


@pytest.mark.mpl_image_compare(filename="accuracy_vs_dilation.png", **LOOK)
def test_accuracy_vs_dilation(demo):
    return accuracy_vs_dilation.figure(load_sweep(demo))


@pytest.mark.mpl_image_compare(filename="pareto.png", **LOOK)
def test_pareto(demo):
    return pareto.figure(load_sweep(demo))


@pytest.mark.mpl_image_compare(filename="sensitivity.png", **LOOK)
def test_sensitivity(sweep):
    sweep.add("ratplus_tiny", Pattern(), sweep.results(1.6))
    for layer in range(4):
        only = PatternMap.per_layer([Pattern(64 if i == layer else 1) for i in range(4)], 4)
        sweep.add("ratplus_tiny", only, sweep.results(1.61 + 0.03 * layer), status="failed" if layer == 2 else "done")
        for head in range(4):
            rows = [[Pattern(64 if (i, j) == (layer, head) else 1) for j in range(4)] for i in range(4)]
            one = PatternMap(tuple(tuple(row) for row in rows))
            sweep.add("ratplus_tiny", one, sweep.results(1.6 + 0.002 * layer * head))
    return sensitivity.figure(load_sweep(sweep.write()))
