"""What is shown of two sweeps' differences, of benchmarks and of masks, of rows that are written by hand."""

import base64
import math

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.compare import caption, notes, summary
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.efficiency import kernels_summary, models_summary, models_table
from ratplus.analysis.frame.reads import entries, reads_apart
from ratplus.analysis.frame.selection import mask_of
from ratplus.analysis.page.parts import table_of
from ratplus.analysis.paired.bootstrap import BOOTSTRAP, ERRORS

# ---- two sweeps ----


def differences(*given: tuple) -> pd.DataFrame:
    names = ["run_a", "run_b", "pattern", "metric", "a", "b", "p_holm", "method"]
    frame = pd.DataFrame(given, columns=names)
    return frame.assign(difference=frame["b"] - frame["a"], stderr=0.0123, pattern_name="")


ROWS = differences(
    ("m", "m", "D1", "loss", 2.0, 2.5, 0.049, ERRORS), ("m", "n", "D4", "loss", 2.0, 1.75, 0.05, BOOTSTRAP),
    ("m", "m", "D1", "recall_accuracy", 0.5, 0.25, math.nan, BOOTSTRAP),
    ("m", "m", "D1", "recall_accuracy_1_32", 0.5, 0.25, 0.0, BOOTSTRAP),
    ("m", "m", "D1", "perplexity", 7.0, 9.0, 0.0, BOOTSTRAP),
)  # fmt: skip


def test_totals_of_each_run_and_pattern_with_certain_changes_in_bold():
    assert summary(ROWS).to_dict("records") == [
        {"Model": "m", "Pattern": "D1", "Loss": "2.000 → 2.500", "Δ Loss": "**0.500 ± 0.012**",
         "Recall accuracy (%)": "50.0 → 25.0", "Δ Recall accuracy (%)": "−25.0 ± 1.2"},
        {"Model": "m → n", "Pattern": "D4", "Loss": "2.000 → 1.750", "Δ Loss": "−0.250 ± 0.012",
         "Recall accuracy (%)": "—", "Δ Recall accuracy (%)": "—"},
    ]  # fmt: skip


def test_the_caption_names_the_way_that_most_differences_were_taken_first():
    said = caption(ROWS, "one", "two")
    assert said.startswith("Sweep two against sweep one: values as first → second; Δ: second minus first")
    assert said.index("paired bootstrap") < said.index("unpaired, where samples are not stored")
    assert "unpaired" not in caption(ROWS[ROWS["method"].eq(BOOTSTRAP)], "one", "two")


def test_cells_of_one_sweep_alone_and_without_a_result_are_counted():
    a = pd.DataFrame({"status": ["done", "failed", "done", "done"]})
    b = pd.DataFrame({"status": ["missing", "running", "done"]})
    pairs = pd.DataFrame({"a": [0, 1, 1], "b": [2, 1, 0]})
    assert notes(a, b, pairs, "one", "two") == [
        "2 of 4 cells stand in one only.", "1 of the cells in common have no result in one.",
        "2 of the cells in common have no result in two.",
    ]  # fmt: skip


# ---- benchmarks ----


def test_benchmarks_of_kernels_in_the_units_of_their_titles():
    rows = pd.DataFrame({
        "op": "decode", "shape": "B1", "pattern": ["-", "D4"], "candidate": ["ours", "dense SDPA"],
        "ms_p50": [0.012345, 1234.5], "ms_p20": [0.01, 0.0], "ms_p80": [9.996, 2.0], "dense_ratio": [0.256, math.nan],
        "limit_fraction": [0.5, 1.0], "bandwidth_fraction": [0.25, math.nan], "matmul_fraction": [0.125, 0.0],
        "peak_bytes": [3 * 2**19, math.nan],
    })  # fmt: skip
    assert kernels_summary(rows).to_numpy().tolist() == [
        ["decode B1", "—", "**ours**", "0.0123", "0.0100–10.00", "0.26", "50", "25", "12", "1.5"],
        ["decode B1", "D4", "dense SDPA", "1234", "0–2.00", "—", "100", "—", "0", "—"],
    ]


def test_benchmarks_of_models_in_the_units_of_their_titles():
    row = {
        "model": "m", "pattern": "D4", "context": 512, "batch": 8, "largest": False, "prefill_ms_p50": 20.0,
        "prefill_limit_ms": 5.0, "prefill_ratio": 0.5, "decode_ms_p50": 4.0, "decode_limit_ms": 3.0,
        "decode_ratio": 0.25, "kv_ratio": 0.125, "tokens_per_second": 1234.5, "kv_bytes": 3 * 2**20,
        "state_bytes": 1536, "max_batch": 1234,
    }  # fmt: skip
    missing = row | {"prefill_ms_p50": None, "prefill_limit_ms": None, "prefill_ratio": None, "largest": True}
    table = models_table([{"benchmark": "model", "device": "d", "rows": [row, missing]}])
    assert list(table["prefill_limit_fraction"]) == pytest.approx([0.25, math.nan], nan_ok=True)
    assert list(table["decode_limit_fraction"]) == [0.75, 0.75]
    first, second = (line.drop("Model").to_dict() for _, line in models_summary(table).iterrows())
    assert first == {
        "Pattern": "D4", "Batch": "8", "Prefill (ms)": "20.0", "Prefill × dense": "0.50", "Decode (ms)": "4.00",
        "Decode × dense": "0.25", "Of limit (%)": "75", "Tokens/s": "1,234", "KV (MiB)": "3.00", "KV × dense": "0.125",
        "State (KiB)": "1.5", "Most seq.": "1,234",
    }  # fmt: skip
    assert (second["Prefill (ms)"], second["Prefill × dense"], second["Decode (ms)"]) == ("—", "—", "4.00")


# ---- what is read and seen ----


def test_entries_are_whole_or_have_a_digit_and_bounds_are_marked():
    counts = pd.Series([512.0, 92.5, 8.0])
    assert entries(counts) == ["512", "92.5", "8"]
    assert entries(counts, [True, False, True]) == ["512", "≤ 92.5", "8"]
    assert not reads_apart(pd.DataFrame({"kv_read": [1, 2], "kv_entries": [1, 2]}))
    assert reads_apart(pd.DataFrame({"kv_read": [1, 2], "kv_entries": [1, 3]}))


@pytest.mark.parametrize("length", [1, 3, 8, 40])
def test_a_mask_is_unpacked_as_it_was_seen(length):
    seen = np.random.default_rng(length).random((length, length)) < 0.3
    bits = base64.b64encode(np.packbits(seen)).decode()
    assert np.array_equal(mask_of({"length": length, "bits": bits}), seen)
    more = base64.b64encode(np.packbits(seen).tobytes() + b"\0").decode()
    with pytest.raises(ValueError, match=f"a mask of {length} positions has"):
        mask_of({"length": length, "bits": more})


@pytest.mark.parametrize("length", [0, 4097, "8", None])
def test_a_mask_of_an_odd_length_is_refused(length):
    with pytest.raises(ValueError, match="a mask of length"):
        mask_of({"length": length, "bits": ""})


def test_a_table_of_the_page_knows_its_columns_of_numbers():
    shown = pd.DataFrame({"Model": ["m", "m"], "Pattern": ["D1", "D4"], "Loss": ["1.0", "**2.0**"]})
    found = table_of(Table("t_x", None, shown, "A **caption**", ["a note"], names=2, grouped=True), {"other": "Other"})
    assert (found["title"], found["notes"]) == ("t x", ["a note"])
    assert found["columns"] == [("Model", False), ("Pattern", False), ("Loss", True)]
    assert found["rows"] == [
        [("m", False, False), ("D1", False, False), ("1.0", False, True)],
        [("", False, False), ("D4", False, False), ("2.0", True, True)],
    ]
