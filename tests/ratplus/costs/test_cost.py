"""The cost model against brute force: visibility masks, a simulated cache and counted loops."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratplus.costs import cost
from ratplus.pattern import Pattern, PatternMap

PATTERNS = st.builds(
    Pattern,
    dilation=st.none() | st.integers(1, 70),
    window=st.integers(0, 80),
    sinks=st.integers(0, 40),
)
LENGTHS = st.integers(0, 130)


def simulated_cache(pattern: Pattern, length: int) -> set[int]:
    """Positions that a cache holds after `length` steps, by storing and evicting one token at a time."""
    held = set()
    for new in range(length):
        held.add(new)
        left = new - pattern.window  # the token that the window no longer covers for the next query
        kept = pattern.dilation is not None and (left + 1) % pattern.dilation == 0
        if left >= pattern.sinks and not kept:
            held.discard(left)
    return held


@given(PATTERNS, LENGTHS)
def test_visible_pairs_equal_the_mask(pattern, length):
    assert cost.visible_pairs(pattern, length) == int(pattern.visible(length).sum())


@given(PATTERNS, LENGTHS, st.data())
def test_chunk_equals_the_masks_last_rows(pattern, length, data):
    start = data.draw(st.integers(0, length))
    mask = pattern.visible(length - start, length)
    assert cost.visible_pairs(pattern, length, start) == int(mask.sum())
    assert cost.attention_flops(pattern, length, 8, start) == 4 * 8 * int(mask.sum())


@given(PATTERNS, LENGTHS)
def test_entries_and_decode_equal_a_simulated_cache(pattern, length):
    held = simulated_cache(pattern, length)
    assert cost.kv_entries(pattern, length) == len(held)
    assert cost.kv_bytes(pattern, length, d_head=16, bytes_per_element=4) == len(held) * 2 * 16 * 4
    seen = set(np.flatnonzero(pattern.visible(1, length + 1)[0]))
    assert seen == {*held, length}
    assert cost.decode_flops(pattern, length, d_head=16) == 4 * 16 * len(seen)


@given(st.lists(st.lists(PATTERNS, min_size=2, max_size=2), min_size=1, max_size=3), LENGTHS)
def test_maps_are_sums_over_layers_and_heads(rows, length):
    patterns = PatternMap(tuple(tuple(row) for row in rows))
    heads = [p for row in rows for p in row]
    total = cost.cost(patterns, length, d_head=8, recurrence=True)
    assert total.heads == len(heads)
    assert total.visible_pairs == sum(int(p.visible(length).sum()) for p in heads)
    assert total.attention_flops == sum(cost.attention_flops(p, length, 8) for p in heads)
    assert total.decode_flops == sum(cost.decode_flops(p, length, 8) for p in heads)
    assert total.kv_entries == sum(p.kv_entries(length) for p in heads)
    assert total.kv_entries_per_head == total.kv_entries / len(heads)
    assert total.attention_flops_ratio == pytest.approx(np.mean([cost.attention_flops_ratio(p, length) for p in heads]))
    assert total.kv_ratio == pytest.approx(np.mean([cost.kv_ratio(p, length) for p in heads]))


def test_recurrence_counted_step_by_step():
    length, d_head, heads = 7, 4, 3
    flops = elements = 0
    for _step in range(length):
        for _channel in range(d_head * heads):
            elements += 1  # the gate's logit, shared by key and value
            for _stream in ("key", "value"):
                flops += 3  # u - h, times (1 - g), plus h
                elements += 2  # read the input, write the result
    assert cost.recurrence_flops(length, d_head, heads) == flops
    assert cost.recurrence_bytes(length, d_head, heads, bytes_per_element=4) == 4 * elements
    assert cost.state_bytes(d_head, heads) == 2 * heads * d_head * np.dtype(np.float32).itemsize


def test_cost_of_a_model():
    patterns = PatternMap.per_layer([Pattern(), Pattern(64)], heads=2)
    with_state = cost.cost(patterns, 512, d_head=32, recurrence=True, bytes_per_element=4)
    without = cost.cost(patterns, 512, d_head=32, bytes_per_element=4)
    assert with_state.kv_entries == 2 * 512 + 2 * 8
    assert with_state.kv_bytes == without.kv_bytes == (2 * 512 + 2 * 8) * 2 * 32 * 4
    assert with_state.cache_bytes - with_state.kv_bytes == with_state.state_bytes == 4 * 2 * 32 * 4
    assert with_state.recurrence_flops == 6 * 32 * 4 * 512
    assert (without.state_bytes, without.recurrence_flops, without.recurrence_bytes) == (0, 0, 0)


def test_known_values():
    assert cost.visible_pairs(Pattern(), 4) == 10
    assert cost.visible_pairs(Pattern(None), 9) == 9  # itself alone
    assert cost.attention_flops_ratio(Pattern(), 4096) == cost.kv_ratio(Pattern(), 4096) == 1.0
    assert cost.kv_entries(Pattern(16, 256, 4), 4096) == 4 + 256 + 240
    assert cost.attention_flops_ratio(Pattern(64), 262_144) == pytest.approx(1 / 64, rel=1e-3)


def test_empty_sequence_costs_nothing_and_has_ratio_one():
    empty = cost.cost(Pattern(16), 0, d_head=8)
    assert (empty.visible_pairs, empty.attention_flops, empty.kv_entries, empty.cache_bytes) == (0, 0, 0, 0)
    assert (empty.attention_flops_ratio, empty.kv_ratio) == (1.0, 1.0)


def test_long_sequences_and_large_models_are_instant_and_exact():
    patterns = PatternMap.uniform(Pattern(16, 256, 4), layers=32, heads=32)
    start = time.process_time()  # to count the pairs of every head would take minutes
    total = cost.cost(patterns, 262_144, d_head=128, recurrence=True)
    assert time.process_time() - start < 5
    by_entries = int((Pattern(16, 256, 4).kv_entries(np.arange(262_144)) + 1).sum())
    assert total.visible_pairs == 32 * 32 * by_entries
    # No overflow where 64-bit integers would: exact Python integers all the way.
    assert cost.attention_flops(Pattern(), 2**33, d_head=128) == 4 * 128 * (2**33 * (2**33 + 1) // 2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: cost.visible_pairs(Pattern(), -1), "length"),
        (lambda: cost.visible_pairs(Pattern(), 1.5), "length"),
        (lambda: cost.visible_pairs(Pattern(), 4, start=5), "start"),
        (lambda: cost.attention_flops(Pattern(), 4, d_head=0), "d_head"),
        (lambda: cost.kv_bytes(Pattern(), 4, 8, bytes_per_element=True), "bytes_per_element"),
        (lambda: cost.kv_ratio({"dilation": 4}, 8), "patterns"),
        (lambda: cost.state_bytes(8, heads=0), "heads"),
    ],
)
def test_impossible_numbers_are_named(call, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        call()


def test_numpy_integers_are_welcome():
    assert cost.visible_pairs(Pattern(4), np.int64(64)) == cost.visible_pairs(Pattern(4), 64)


def test_needs_no_torch():
    code = "import sys, ratplus.costs.cost; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'triton')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_a_recurrence_costs_is_of_the_heads_of_keys():
    patterns = PatternMap.uniform(Pattern(4), 3, 8)
    for kv_heads, held in ((None, 24), (2, 6)):
        found = cost.cost(patterns, 100, 16, recurrence=True, bytes_per_element=2, kv_heads=kv_heads)
        assert (found.heads, found.kv_heads) == (24, held)
        assert found.state_bytes == 2 * 4 * 16 * held
        assert found.recurrence_flops == 6 * 16 * held * 100
        assert found.recurrence_bytes == 5 * 16 * held * 100 * 2
        assert found.kv_bytes == found.kv_entries * 2 * 16 * 2 == 25 * held * 2 * 16 * 2
        assert found.cache_bytes == found.kv_bytes + found.state_bytes
        plain = cost.cost(patterns, 100, 16, kv_heads=kv_heads)
        assert (plain.state_bytes, plain.recurrence_flops, plain.recurrence_bytes) == (0, 0, 0)
        assert plain.attention_flops == found.attention_flops == cost.cost(patterns, 100, 16).attention_flops
