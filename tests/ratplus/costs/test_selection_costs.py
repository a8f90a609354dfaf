"""Costs of patterns that select by query, against counts of masks of random queries and keys and of counted loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratplus.costs import cost
from ratplus.costs.facts import pattern_facts
from ratplus.costs.selection import forward_is_exact
from ratplus.pattern import Pattern, PatternMap

WIDTH = 4
LABELS = (
    "top2x4", "top4x4", "top3x8-nofirst", "quest3x4", "random3x4-seed1", "D4-top3x4", "D2-quest3x8", "D3-top3x4",
    "D4-W3-top2x4", "stream-I2-top2x4", "stream-W5-top3x4", "D4-W3-I5-top3x8", "D2-ktop2x4", "D3-ktop3x2",
    "D2-W3-ktop2x4", "D4-kquest2x2-nofirst", "top9x100",
)  # fmt: skip
PROMPTS = ("top3x4-decode", "quest2x8-decode", "D4-top2x4-decode", "top3x4-prefill", "D4-W3-top2x4-prefill")


def drawn(length: int, seed: int, heads: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(heads, length, WIDTH))


def mask(pattern: Pattern, length: int, seed: int, prompt: int | None = None) -> np.ndarray:
    q, k = drawn(length, seed), drawn(length, seed + 1)
    return pattern.visible_from(q, k, prompt)[0]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(LABELS), st.integers(1, 70), st.integers(0, 99))
def test_counts_are_the_masks_or_bound_them(label, length, seed):
    pattern = Pattern.from_label(label)
    seen = mask(pattern, length, seed).sum(axis=1)
    counted = [cost.decode_flops(pattern, t, WIDTH) // (4 * WIDTH) for t in range(length)]
    if pattern.kv_read_exact:
        assert counted == seen.tolist()
        assert cost.visible_pairs(pattern, length) == seen.sum()
    else:
        assert (np.array(counted) >= seen).all()
        assert cost.visible_pairs(pattern, length) >= seen.sum()
    assert cost.cost(pattern, length, WIDTH).pairs_exact == pattern.kv_read_exact == forward_is_exact(pattern)
    assert cost.visible_pairs(pattern, length) == sum(counted) <= length * (length + 1) // 2
    assert cost.kv_read(pattern, length - 1) == counted[-1] - 1


def test_bounds_are_reached():
    """Where overlaps depend on data, some data has none: the bound is no looser than it must be."""
    pattern = Pattern.from_label("stream-W3-top3x4")
    length = 40
    assert not pattern.kv_read_exact
    most = max(mask(pattern, length, seed).sum(axis=1)[-1] for seed in range(40))
    assert most == cost.kv_read(pattern, length - 1) + 1


@pytest.mark.parametrize("label", PROMPTS)
@pytest.mark.parametrize("prompt", [1, 17, 30])
def test_phases(label, prompt):
    """A forward is of a prompt, a step of what was generated after it."""
    pattern, length = Pattern.from_label(label), 45
    seen = mask(pattern, length, seed=prompt, prompt=prompt).sum(axis=1)
    steps = [cost.decode_flops(pattern, t, WIDTH) // (4 * WIDTH) for t in range(prompt, length)]
    forward = cost.visible_pairs(pattern, prompt)
    for counted, real, exact in (
        (steps, seen[prompt:].tolist(), pattern.kv_read_exact),
        ([forward], [seen[:prompt].sum()], forward_is_exact(pattern)),
    ):
        assert counted == real if exact else all(c >= r for c, r in zip(counted, real))
    assert forward_is_exact(pattern) == (label != "D4-W3-top2x4-prefill")


def test_snapkv():
    pattern, prompt = Pattern.from_label("snap12x4"), 40
    spent = cost.cost(pattern, prompt, WIDTH, bytes_per_element=2)
    dense = cost.cost(Pattern(), prompt, WIDTH)
    seen = mask(pattern, 50, seed=3, prompt=prompt).sum(axis=1)
    assert spent.visible_pairs == dense.visible_pairs == seen[:prompt].sum()
    assert spent.kv_entries == spent.kv_read == seen[prompt] - 1 == 12
    assert spent.kv_peak == 40
    assert spent.kv_read_exact
    assert spent.pairs_exact
    assert spent.selection_flops == 2 * WIDTH * 4 * 40
    assert spent.metadata_bytes == 0
    assert spent.decode_bytes == 2 * WIDTH * 2 * 13
    later = cost.cost(pattern, 45, WIDTH, bytes_per_element=2, prompt=prompt)
    assert later.kv_read == later.kv_entries == seen[45] - 1 == 17
    assert (later.kv_peak, later.kv_bytes, later.decode_bytes) == (40, 17 * 2 * WIDTH * 2, 18 * 2 * WIDTH * 2)
    assert later.decode_flops == 4 * WIDTH * 18
    assert later.read_ratio == later.kv_ratio == 17 / 45
    assert cost.kv_peak(pattern, 90, prompt=prompt) == 62  # generated for so long that it holds more than the prompt
    short = cost.cost(pattern, 12, WIDTH)
    assert (short.kv_entries, short.selection_flops, short.attention_flops_ratio) == (12, 0, 1.0)


@pytest.mark.parametrize(("label", "each"), [("top3x4", 2), ("quest3x4", 4), ("D2-ktop3x4", 2), ("random3x4", 0)])
def test_selection_is_counted_query_by_query(label, each):
    pattern, length = Pattern.from_label(label), 61
    span = 4 * (2 if pattern.over == "kept" else 1)
    flops = []
    for t in range(length):
        rivals = t // span  # complete blocks before the query's own
        flops.append(each * WIDTH * rivals if rivals + 1 > 3 else 0)
    assert cost.selection_flops(pattern, length, WIDTH) == sum(flops)
    assert [cost.decode_selection_flops(pattern, t, WIDTH) for t in range(length)] == flops


def test_bytes_of_a_model():
    """Held: all keys and metadata of complete blocks. Read: the blocks that are chosen, and metadata to choose them."""
    patterns, length, d_head = PatternMap.uniform(Pattern.from_label("quest3x16"), 2, 4), 100, 8
    spent = cost.cost(patterns, length, d_head, recurrence=True, bytes_per_element=2, kv_heads=2)
    held, blocks = 2 * 2, 6  # heads of keys in the model, complete blocks of 16 in 100
    assert (spent.heads, spent.kv_heads) == (8, held)
    assert spent.kv_entries == held * 100
    assert spent.kv_read == held * (4 + 2 * 16)
    assert spent.kv_read_per_head == 36
    assert spent.read_ratio == 0.36
    assert spent.kv_ratio == 1
    assert spent.metadata_bytes == held * blocks * 2 * d_head * 2
    assert spent.cache_bytes == held * (100 * 2 * d_head * 2 + blocks * 2 * d_head * 2 + 2 * d_head * 4)
    assert spent.decode_bytes == held * (37 * 2 * d_head * 2 + blocks * 2 * d_head * 2)
    assert spent.decode_flops == 8 * 4 * d_head * 37
    assert spent.decode_selection_flops == 8 * 4 * d_head * blocks
    mean = cost.cost(Pattern.from_label("top3x16"), length, d_head, bytes_per_element=4)
    assert mean.metadata_bytes == blocks * 4 * d_head  # float32 whatever the keys are
    dense = cost.cost(Pattern(), length, d_head).attention_flops
    assert mean.attention_flops_ratio == (mean.attention_flops + mean.selection_flops) / dense


def test_nothing_is_read_of_metadata_where_all_blocks_may_be_read():
    pattern = Pattern.from_label("top4x16")
    assert cost.decode_bytes(pattern, 63, 8) == 64 * 2 * 8 * 2
    assert cost.decode_bytes(pattern, 64, 8) == (48 + 1) * 2 * 8 * 2 + 4 * 8 * 4
    assert cost.metadata_bytes(pattern, 63, 8) == 3 * 8 * 4


def test_older_patterns_read_what_they_hold():
    for label in ("D1", "D16", "D16-W8-I2", "stream-W8-I2"):
        spent = cost.cost(Pattern.from_label(label), 100, 8)
        assert spent.kv_read == spent.kv_entries == spent.kv_peak
        assert spent.kv_read_exact
        assert spent.pairs_exact
        assert spent.selection_flops == spent.metadata_bytes == 0


@pytest.mark.parametrize(
    ("label", "kind", "method"),
    [
        ("D1", "dense", "dense"), ("D16", "dilated", "dilated"), ("D16-W8", "dilated_local", "dilated + window"),
        ("stream-W8", "streaming", "streaming"), ("top3x8", "topk", "top-k"), ("D16-top3x8", "topk", "top-k + D16"),
        ("quest3x8-decode", "quest", "Quest in decode"), ("random3x8", "random", "random blocks"),
        ("snap8x4", "snapkv", "SnapKV"), ("D8-ktop3x8", "topk", "top-k of dilated keys + D8"),
        ("layers[D1,top3x8]", "hybrid", "hybrid"),
    ],
)  # fmt: skip
def test_kinds_and_methods(label, kind, method):
    model = {"layers": 2, "d_model": 16, "d_head": 8}
    plain = PatternMap.from_label(label, 2, 2).to_dict()
    facts = pattern_facts(plain, model, 64)
    assert (facts.pattern, facts.kind, facts.method) == (PatternMap.from_label(label, 2, 2).label, kind, method)
    uniform = kind != "hybrid"
    selects = uniform and PatternMap.from_label(label, 2, 2)[0][0].data_dependent
    assert bool(facts.selection) == selects
