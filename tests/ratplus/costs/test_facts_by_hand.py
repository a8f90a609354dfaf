"""Facts of a pattern as tables show them: kind, method, numbers and selection of every kind, in every mixer."""

import pytest

from ratplus.config.model import ModelConfig
from ratplus.costs.cost import cost
from ratplus.costs.facts import at_most, pattern_facts
from ratplus.costs.of_model import model_cost
from ratplus.costs.state import state_cost
from ratplus.pattern import Pattern, PatternMap

SHAPE = {"layers": 2, "d_model": 32, "d_head": 8}
SELECTED = {"top": 3, "block": 8, "score": "mean"}


@pytest.mark.parametrize(
    ("label", "kind", "method", "numbers", "selection"),
    [
        ("D1", "dense", "dense", (1, 0, 0), {}), ("D16", "dilated", "dilated", (16, 0, 0), {}),
        ("D1-W4", "dense", "dense", (1, 4, 0), {}), ("D16-W4", "dilated_local", "dilated + window", (16, 4, 0), {}),
        ("D16-I2", "dilated_local", "dilated + window", (16, 0, 2), {}),
        ("stream", "streaming", "streaming", (None, 0, 0), {}),
        ("stream-W4-I2", "streaming", "streaming", (None, 4, 2), {}),
        ("top3x8", "topk", "top-k", (None, 0, 0), SELECTED),
        ("quest3x8", "quest", "Quest", (None, 0, 0), SELECTED | {"score": "bounds"}),
        ("random3x8-seed2", "random", "random blocks", (None, 0, 0), SELECTED | {"score": "random", "seed": 2}),
        ("top3x8-nofirst", "topk", "top-k", (None, 0, 0), SELECTED | {"first": False}),
        ("D4-top3x8", "topk", "top-k + D4", (4, 0, 0), SELECTED),
        ("stream-W4-top3x8", "topk", "top-k + stream-W4", (None, 4, 0), SELECTED),
        ("stream-I2-top3x8", "topk", "top-k + stream-I2", (None, 0, 2), SELECTED),
        ("D1-top3x8", "dense", "dense", (1, 0, 0), SELECTED),
        ("quest3x8-decode", "quest", "Quest in decode", (None, 0, 0), SELECTED | {"score": "bounds",
         "phase": "decode"}),
        ("D4-ktop3x8", "topk", "top-k of dilated keys + D4", (4, 0, 0), SELECTED | {"over": "kept"}),
        ("D4-ktop3x8-prefill", "topk", "top-k in prefill of dilated keys + D4", (4, 0, 0),
         SELECTED | {"over": "kept", "phase": "prefill"}),
        ("snap9x4", "snapkv", "SnapKV", (None, 0, 0), {"snap": 9, "observe": 4, "kernel": 5, "pool": "avg"}),
        ("stream-I2-snap9x4", "snapkv", "SnapKV + stream-I2", (None, 0, 2),
         {"snap": 9, "observe": 4, "kernel": 5, "pool": "avg"}),
        ("layers[D1,D4]", "hybrid", "hybrid", (None, None, None), {}),
        ("heads[D4,D4,top3x8,D4]", "hybrid", "hybrid", (None, None, None), {}),
    ],
)  # fmt: skip
def test_facts_of_every_kind(label, kind, method, numbers, selection):
    patterns = PatternMap.from_label(label, 2, 4)
    for more in ({}, {"recurrence": True}, {"query_heads": 4, "kv_heads": 4}, {"kv_heads": None, "mixer": None}):
        found = pattern_facts(patterns.to_dict(), SHAPE | more, 64)
        assert (found.pattern, found.kind, found.method) == (patterns.label, kind, method)
        assert (found.dilation, found.window, found.sinks) == numbers
        assert found.selection == selection
        recurrence = bool(more.get("recurrence"))
        assert found.cost == cost(patterns, 64, 8, recurrence=recurrence, kv_heads=4)


def test_facts_count_the_heads_that_hold_keys():
    shared = pattern_facts({"dilation": 4, "window": 0, "sinks": 0}, SHAPE | {"kv_heads": 2}, 64)
    assert (shared.cost.heads, shared.cost.kv_heads) == (8, 4)
    wide = pattern_facts({"dilation": 4, "window": 0, "sinks": 0}, SHAPE | {"query_heads": 6}, 64)
    assert (wide.cost.heads, wide.cost.kv_heads) == (12, 12)


@pytest.mark.parametrize(("mixer", "title"), [("mamba2", "Mamba2"), ("gated_deltanet", "Gated DeltaNet")])
def test_facts_of_mixers_with_a_state(mixer, title):
    dense = {"dilation": 1, "window": 0, "sinks": 0}
    found = pattern_facts(dense, SHAPE | {"mixer": mixer, "query_heads": 3, "d_state": 5}, 64)
    assert (found.pattern, found.kind, found.method, found.selection) == ("D1", "dense", title, {})
    assert (found.dilation, found.window, found.sinks) == (1, 0, 0)
    model = ModelConfig(1, 2, 32, 8, recurrence=False, mixer=mixer, query_heads=3, d_state=5)
    assert found.cost == state_cost(model, 64) == model_cost(model, PatternMap.uniform(Pattern(), 2, 3), 64)
    with pytest.raises(ValueError, match=mixer):
        pattern_facts(dense | {"dilation": 4}, SHAPE | {"mixer": mixer}, 64)


def test_a_model_s_cost_is_that_of_its_heads():
    model = ModelConfig(9, 2, 32, 8, kv_heads=2)
    patterns = PatternMap.uniform(Pattern(snap=9, observe=4), 2, 4)
    assert model_cost(model, patterns, 40, 4, 30) == cost(
        patterns, 40, 8, recurrence=True, bytes_per_element=4, kv_heads=2, prompt=30
    )
    assert model_cost(model, patterns, 40).kv_bytes == cost(patterns, 40, 8, kv_heads=2).kv_bytes


def test_an_upper_bound_is_marked():
    assert (at_most("9", True), at_most("9", False)) == ("9", "≤ 9")
