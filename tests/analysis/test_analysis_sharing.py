"""Models whose heads share keys and values, beside sparse patterns: the other way to a smaller cache."""

import json

from ratplus.analysis import pareto
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern

LAYERS, HEADS, D_HEAD, CONTEXT = 4, 4, 16, 512  # of the generated sweep


def test_rows_and_points_of_grouped_and_multi_query_attention(sweep):
    sweep.add("attention_tiny", Pattern(), {"loss": 2.0})
    sweep.add("attention_tiny", Pattern(), {"loss": 2.1}, kv_heads=2, axes={"model.kv_heads": 2})
    sweep.add("attention_tiny_mqa", Pattern(), {"loss": 2.2}, kv_heads=1)
    sweep.add("ratplus_tiny", Pattern(16), {"loss": 2.05})
    sweep.add("ratplus_tiny_mqa", Pattern(16), {"loss": 2.3}, kv_heads=1)
    sweep.write()
    frame = load_sweep(sweep.path)

    entry = 2 * D_HEAD * 2 * LAYERS  # bytes of a key and a value in bfloat16, in every layer
    state = 2 * D_HEAD * 4 * LAYERS
    assert list(frame["kv_heads"]) == [HEADS, 2, 1, HEADS, 1]
    kept = CONTEXT // 16
    held = [HEADS * CONTEXT * entry, 2 * CONTEXT * entry, CONTEXT * entry]
    held += [HEADS * (kept * entry + state), kept * entry + state]
    assert list(frame["kv_bytes"]) == held
    assert list(frame["kv_entries"]) == [CONTEXT] * 3 + [kept] * 2
    # Every query head attends, whoever owns the keys.
    assert frame["attention_flops"].nunique() == 2
    assert set(frame["attention_flops_ratio"][:3]) == {1.0}

    rows = pareto.table(frame).set_index("run")
    assert dict(rows["frontier_kv"]) == {
        "attention_tiny": True, "attention_tiny, kv_heads=2": False, "attention_tiny_mqa": False,
        "ratplus_tiny": True, "ratplus_tiny_mqa": True,
    }  # fmt: skip
    shown = pareto.summary(frame).set_index("Model")["KV heads"]
    assert dict(shown) == {"attention_tiny": "4 of 4", "ratplus_tiny": "4 of 4", "ratplus_tiny_mqa": "1 of 4"}
    (panel, *_) = pareto.figure(frame).axes
    labels = {text.get_text() for text in panel.texts}
    assert labels <= {"D1", "D1 GQA-2", "D1 MQA", "D16", "D16 MQA"}
    assert {"D1 GQA-2", "D1 MQA", "D16 MQA"} <= labels


def test_sweeps_of_before_have_no_column_of_it(sweep):
    sweep.add("attention_tiny", Pattern(), {"loss": 2.0})
    sweep.add("attention_tiny", Pattern(4), {"loss": 2.1})
    sweep.write()
    assert "kv_heads" not in json.dumps(sweep.cells)
    frame = load_sweep(sweep.path)
    assert list(frame["kv_heads"]) == [HEADS, HEADS]
    assert "KV heads" not in pareto.summary(frame)
