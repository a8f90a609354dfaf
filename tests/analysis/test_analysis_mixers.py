"""Models without attention beside RAT+ and attention: a state of fixed size, and no pattern."""

from ratplus import ModelConfig
from ratplus.analysis import accuracy_vs_dilation, masks, pareto, pattern_tables
from ratplus.analysis.frame.load import load_sweep
from ratplus.costs.state import state_cost
from ratplus.pattern import Pattern

LAYERS, D_MODEL, D_HEAD, CONTEXT = 4, 64, 16, 512  # of the generated sweep


def test_rows_and_points_of_models_without_attention(sweep):
    sweep.add("ratplus_tiny", Pattern(), {"loss": 1.9})
    sweep.add("ratplus_tiny", Pattern(16), {"loss": 2.0})
    sweep.add("mamba2_tiny", Pattern(), {"loss": 2.2}, mixer="mamba2")
    sweep.add("gated_deltanet_tiny", Pattern(), {"loss": 2.1}, mixer="gated_deltanet")
    sweep.write()
    frame = load_sweep(sweep.path)

    assert list(frame["method"]) == ["dense", "dilated", "Mamba2", "Gated DeltaNet"]
    assert list(frame["kind"]) == ["dense", "dilated", "dense", "dense"]
    assert list(frame["pattern"]) == ["D1", "D16", "D1", "D1"]
    for place, mixer in ((2, "mamba2"), (3, "gated_deltanet")):
        model = ModelConfig(257, LAYERS, D_MODEL, D_HEAD, recurrence=False, mixer=mixer)
        spent, row = state_cost(model, CONTEXT), frame.iloc[place]
        assert (row["kv_bytes"], row["kv_entries"], row["kv_read"], row["kv_ratio"]) == (spent.state_bytes, 0, 0, 0)
        assert row["attention_flops"] == spent.attention_flops > 0
        assert row["heads"] == row["kv_heads"] == 4

    made = accuracy_vs_dilation.contents(frame)
    state = f"{frame.iloc[2]['kv_bytes'] / 1024:.1f}"
    line = f"mamba2_tiny: Mamba2, no attention and so no pattern; a sequence is a state of {state} KiB."
    assert line in accuracy_vs_dilation.notes(frame)
    assert not any("ratplus" in note and "no attention" in note for note in accuracy_vs_dilation.notes(frame))
    assert len(made) == 2  # the table, and a figure
    rows = pareto.table(frame).set_index("run")
    # Mamba2 holds least: all heads share what its convolution keeps of keys and queries.
    assert frame["kv_bytes"].astype(int).idxmin() == 2
    assert bool(rows.loc["mamba2_tiny", "frontier_kv"])
    (panel, *_) = pareto.figure(frame).axes
    assert panel.get_xscale() == "log"


def test_masks_draw_nothing_of_models_without_attention(sweep):
    sweep.add("mamba2_tiny", Pattern(), {"loss": 2.2, "recall_accuracy": 0.2}, mixer="mamba2")
    assert not masks.applies(load_sweep(sweep.write()))
    sweep.add("ratplus_tiny", Pattern(16), {"loss": 2.0, "recall_accuracy": 0.6})
    frame = load_sweep(sweep.write())
    assert masks.applies(frame)
    assert [pattern.label for pattern in masks.patterns(frame)] == ["D16"]
    assert masks.contents(frame)[0].notes == ["No attention, and so no pattern: mamba2_tiny."]
    assert list(pattern_tables.summary(frame, "recall")["Method"]) == ["Mamba2", "dilated"]
