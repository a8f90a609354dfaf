"""The headline of a page that compares two sweeps, and the order of its rows."""

import pandas as pd

from ratplus.analysis.page.compare import headline


def rows(*given: tuple) -> pd.DataFrame:
    names = ["metric", "pattern", "run_a", "run_b", "a", "b", "p_holm"]
    frame = pd.DataFrame(given, columns=names)
    return frame.assign(difference=frame["b"] - frame["a"], stderr=0.01)


def test_the_largest_certain_change_is_told_whichever_way_it_goes():
    found = headline(
        rows(
            ("loss", "D1", "m", "m", 2.0, 2.125, 0.01), ("loss", "D4", "m", "m", 2.5, 2.25, 0.04),
            ("loss", "D16", "m", "m", 2.0, 4.0, 0.05), ("perplexity", "D1", "m", "m", 7.0, 9.0, 0.0),
            ("recall_accuracy_1_32", "D1", "m", "m", 0.5, 0.9, 0.0), ("recall_accuracy", "D1", "m", "n", 0.5, 0.6, 0.0),
            ("piqa/acc", "D1", "m", "m", 0.5, 0.5, float("nan")),
        ),
        "new",
    )  # fmt: skip
    assert found == (
        "In new, loss: 2 of 3 patterns differ for certain, D4 of m most, by −0.250 ± 0.010; "
        "recall accuracy: 1 of 1 pattern differ for certain, D1 of m → n most, by +10.0 ± 1.0 %; "
        "piqa/acc: no certain difference (1 pattern)."
    )


def test_four_results_are_named_and_models_counted_in_pairs():
    many = [(f"t{i}/acc", "D1", run, run, 0.5, 0.5, 1.0) for i in range(6) for run in ("m", "n")]
    found = headline(rows(*many), "new")
    assert found.count("no certain difference (2 pairs of model and pattern)") == 4
    assert "t3/acc" in found
    assert "t4/acc" not in found
