"""Names of an ablation's lines where ARL itself is not varied: its dilation alone, or other things alone."""

import pytest

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
    assert list(ablation.summary(frame))[:4] == ["Model", "Recurrence", "Adapted", "D4"]
    assert ablation.table(frame)["arl"].isna().all()
    assert set(ablation.table(frame)["combination"]) == {"ratplus_tiny"}


@pytest.mark.parametrize("dilation", [None, {}])
def test_arl_without_a_dilation_is_on_or_off(sweep, dilation):
    """The dilation is not varied, or null: ARL trains with a window alone then."""
    for arl in (False, True):
        axes = {"train.pretrain.arl": arl} | ({DILATION: None} if dilation is None else {})
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7), axes=axes)
    sweep.add("attention_tiny", Pattern(4), sweep.results(1.8), axes={"train.pretrain.arl": None})
    frame = load_sweep(sweep.write())
    shown = ablation.summary(frame)
    assert sorted(shown["Model"] + " " + shown["ARL"]) == ["attention_tiny off", "ratplus_tiny off", "ratplus_tiny on"]
    assert set(ablation.table(frame)["combination"]) == {
        "ratplus_tiny, no ARL", "ratplus_tiny, ARL", "attention_tiny, no ARL",
    }  # fmt: skip


def test_several_numbers_of_steps_seeds_and_other_axes(sweep):
    for steps in (0, 20, 40):
        for chunk in (None, 16):
            for seed in (0, 1):
                for dilation, loss in ((1, 1.7), (64, 1.8)):
                    axes = {"train.adapt.steps": steps, "model.recurrence_chunk": chunk}
                    sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(loss), axes=axes, seed=seed)
    frame = load_sweep(sweep.write())
    shown = ablation.summary(frame)
    assert list(shown) == ["Model", "Recurrence", "Adapted", "Restart every", "Seeds", "D1", "D64"]
    assert sorted(zip(shown["Adapted"], shown["Restart every"], shown["Seeds"])) == sorted(
        (steps, chunk, "2") for steps in ("–", "20 steps", "40 steps") for chunk in ("–", "16")
    )
    assert set(ablation.gaps(frame)) - set(shown) == set()
    assert "D1" not in ablation.gaps(frame), "what a pattern costs is its difference to D1"
    names = set(ablation.table(frame)["combination"])
    assert len(names) == 6
    assert {name for name in names if "steps=20" in name} != set()
    assert not {name for name in names if "steps=0" in name}
