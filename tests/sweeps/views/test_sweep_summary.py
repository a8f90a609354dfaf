"""The few lines that the end of a log shows of a sweep folder."""

from ratplus.sweeps.views.sweep_summary import _shown


def test_results_in_their_units():
    metrics = {
        "loss": {"value": 1.23456, "stderr": 0.012345},
        "recall_accuracy": {"value": 0.5, "stderr": None},
        "niah_single_1_substring": {"value": 0.25, "stderr": 0.125},
        "perplexity": {"value": 3.4, "stderr": 0.1},
    }
    assert _shown(metrics) == {
        "loss": "1.2346 ± 0.0123", "recall (%)": "50.0 ± 0.0", "niah_single_1 (%)": "25.0 ± 12.5",
    }  # fmt: skip


def test_an_evaluation_that_was_asked_for_needles_alone():
    found = _shown({"niah_single_1_substring": {"value": 0.25, "stderr": 0.125}})
    assert found == {"loss": "not asked", "niah_single_1 (%)": "25.0 ± 12.5"}
