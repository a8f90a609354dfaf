"""Names of an ablation's lines where ARL itself is not varied: its dilation alone, or other things alone."""

from ratplus.analysis import ablation
from ratplus.analysis.frame.load import load_sweep
from ratplus.pattern import Pattern

DILATION = "train.pretrain.arl_dilation"


def test_a_sweep_over_the_dilation_of_arl_alone(sweep):
    for trained in (16, 64):
        for dilation in (1, 64):
            sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7), axes={DILATION: trained})
    # A model that trains without has none.
    sweep.add("attention_tiny", Pattern(1), sweep.results(1.8), axes={DILATION: None})
    frame = load_sweep(sweep.write())
    shown = ablation.summary(frame)
    assert dict(zip(shown["Model"] + shown["ARL"], shown["Recurrence"])) == {
        "ratplus_tinyD* = 16": "✓", "ratplus_tinyD* = 64": "✓", "attention_tiny?": "–",
    }  # fmt: skip
    assert set(ablation.table(frame)["combination"]) == {
        "ratplus_tiny, ARL D* = 16", "ratplus_tiny, ARL D* = 64", "attention_tiny",
    }  # fmt: skip


def test_without_arl_no_column_says_so(sweep):
    for steps in (0, 40):
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7), axes={"train.adapt.steps": steps})
    frame = load_sweep(sweep.write())
    assert "ARL" not in ablation.summary(frame)
    assert ablation.table(frame)["arl"].isna().all()
    assert set(ablation.table(frame)["combination"]) == {"ratplus_tiny"}
