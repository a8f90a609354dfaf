"""The headline and the columns of a page that compares two sweeps."""

import math

import pandas as pd

from ratplus.analysis.page.compare import _columns, headline


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
            ("piqa/acc", "D1", "m", "m", 0.5, 0.5, math.nan),
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


def test_each_text_of_a_column_has_the_number_that_it_sorts_by():
    given = rows(
        ("loss", "D16", "m", "m", 2.0, 2.125, 0.04), ("loss", "D4", "m", "n", 2.5, 2.25, 0.01),
        ("recall_accuracy", "D4", "m", "m", 0.5, 0.75, 0.05), ("recall_accuracy", "D16", "m", "m", 0.5, 0.5, math.nan),
    )  # fmt: skip
    given = given.assign(low=given["difference"] - 0.02, high=given["difference"] + 0.03, items=[32, 0, 8, 0])
    given = given.assign(pattern_name="", kind="dilated", dilation=[16, 4, 4, 16], window=0, sinks=0, kv_read=1.0)
    columns = {column["key"]: column for column in _columns(given)}

    def texts(key: str) -> list[str]:
        return [columns[key]["names"][place] for place in columns[key]["of"]]

    assert texts("verdict") == ["higher", "lower", "not certain", "not certain"]
    assert columns["pattern"]["names"] == ["D4", "D16"], "in the order in which patterns stand"
    assert texts("pattern") == ["D16", "D4", "D4", "D16"]
    assert texts("model") == ["m", "m → n", "m", "m"]
    assert texts("metric") == ["loss", "loss", "recall accuracy (%)", "recall accuracy (%)"]
    assert texts("difference") == ["0.125 ± 0.010", "−0.250 ± 0.010", "25.0 ± 1.0", "0.0 ± 1.0"]
    assert texts("low") == ["0.105 to 0.155", "−0.270 to −0.220", "23.0 to 28.0", "−2.0 to 3.0"]
    assert (texts("p_holm"), texts("items")) == (["0.04", "0.01", "0.05", "—"], ["32", "—", "8", "—"])
    assert columns["difference"]["values"] == [0.125, -0.25, 0.25, 0]
    assert columns["items"]["values"] == [32, None, 8, None]
    assert columns["p_holm"]["values"] == [0.04, 0.01, 0.05, None]
