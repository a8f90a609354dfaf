"""Pattern and PatternMap: validation, labels, canonical forms. Visibility itself is in test_golden."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ratplus import Pattern, PatternMap
from ratplus.pattern import build_map

patterns = st.builds(Pattern, st.none() | st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
top_patterns = st.builds(
    Pattern, dilation=st.none() | st.integers(1, 9), window=st.integers(0, 9), sinks=st.integers(0, 9),
    top=st.integers(2, 9), block=st.integers(1, 9), score=st.sampled_from(("mean", "bounds")), first=st.booleans(),
    phase=st.sampled_from(("both", "decode", "prefill")),
)  # fmt: skip
kept_patterns = st.builds(
    Pattern, dilation=st.integers(2, 9), top=st.integers(2, 9), block=st.integers(1, 9), over=st.just("kept"),
    score=st.just("random"), seed=st.integers(0, 9),
)  # fmt: skip
snap_patterns = st.builds(
    Pattern, sinks=st.integers(0, 3), snap=st.integers(12, 99), observe=st.integers(1, 9),
    kernel=st.sampled_from((1, 3, 5, 7)), pool=st.sampled_from(("avg", "max")),
)  # fmt: skip
any_patterns = patterns | top_patterns | kept_patterns | snap_patterns


@given(patterns, st.integers(1, 40))
def test_visible_is_the_definition(pattern, length):
    seen = pattern.visible(length)
    for t in range(length):
        for j in range(length):
            kept = pattern.dilation is not None and (j + 1) % pattern.dilation == 0
            assert seen[t, j] == (j <= t and (kept or t - j <= pattern.window or j < pattern.sinks))


@given(patterns, st.integers(0, 40))
def test_kv_entries_count_what_later_queries_may_see(pattern, length):
    """The cache before step t holds each earlier key that the query at t, or any later one, may still see."""
    horizon = length + 60
    earlier = pattern.visible(horizon)[length:, :length].any(axis=0).sum() if length else 0
    assert pattern.kv_entries(length) == earlier


def test_queries_are_the_last_positions():
    p = Pattern(4, 2, 1)
    np.testing.assert_array_equal(p.visible(3, 10), p.visible(10)[-3:])
    with pytest.raises(ValueError, match="kv_len=2 is smaller than q_len=3"):
        p.visible(3, 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dilation": 0}, r"pattern.dilation: got 0; it must be a whole number ≥ 1"),
        ({"dilation": -7}, r"pattern.dilation: got -7"),
        ({"dilation": "banana"}, r"pattern.dilation: got 'banana'"),
        ({"dilation": True}, r"pattern.dilation: got True"),
        ({"dilation": 2.5}, r"pattern.dilation: got 2.5"),
        ({"window": -1}, r"pattern.window: got -1; it must be ≥ 0"),
        ({"sinks": "x"}, r"pattern.sinks: got 'x'"),
        ({"top": 0}, r"pattern.top: got 0; it must be ≥ 2 \(the query's own block and block 0 count"),
        ({"top": 1}, r"pattern.top: got 1; it must be ≥ 2 .*pattern.first=false"),
        ({"top": 0, "first": False}, r"pattern.top: got 0; it must be ≥ 1$"),
        ({"top": 4, "block": 0}, r"pattern.block: got 0; it must be ≥ 1"),
        ({"top": 4, "score": "meen"}, r"pattern.score: got 'meen'; did you mean mean\? allowed: mean, bounds, random"),
        ({"top": 4, "first": 1}, r"pattern.first: got 1; allowed: true, false"),
        ({"top": 4, "phase": "decoding"}, r"pattern.phase: got 'decoding'; did you mean decode\?"),
        ({"top": 4, "over": "kept"}, r"pattern.blocks_of: got 'kept' with pattern.dilation=None"),
        ({"dilation": 1, "top": 4, "over": "kept"}, r"pattern.blocks_of: got 'kept' with pattern.dilation=1"),
        ({"top": 4, "seed": 1}, r"pattern.seed: got 1 with pattern.score=mean, which draws nothing"),
        ({"top": 4, "score": "random", "seed": 2**31}, r"pattern.seed: got 2147483648; it must be ≤ 2147483647"),
        ({"snap": 0}, r"pattern.snap: got 0; it must be ≥ 1"),
        ({"snap": 63}, r"pattern.snap: got 63; it must be ≥ 64, since pattern.observe=64"),
        ({"snap": 65, "sinks": 2}, r"pattern.snap: got 65; it must be ≥ 66"),
        ({"snap": 99, "kernel": 4}, r"pattern.kernel: got 4; it must be odd"),
        ({"snap": 99, "pool": "mean"}, r"pattern.pool: got 'mean'; allowed: avg, max"),
        ({"snap": 99, "observe": 0}, r"pattern.observe: got 0; it must be ≥ 1"),
        ({"snap": 99, "top": 4}, r"pattern.snap: got 99 with pattern.top=4; give one of them"),
        ({"snap": 99, "dilation": 16}, r"pattern.snap: got 99 with pattern.dilation=16"),
        ({"snap": 99, "window": 3}, r"pattern.snap: got 99 with .*pattern.window=3"),
    ],
)
def test_impossible_patterns_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Pattern(**kwargs)


@pytest.mark.parametrize(
    ("pattern", "label"),
    [
        (Pattern(), "D1"),
        (Pattern(16), "D16"),
        (Pattern(16, 256), "D16-W256"),
        (Pattern(16, 256, 4), "D16-W256-I4"),
        (Pattern(None, 1024, 4), "stream-W1024-I4"),
        (Pattern(top=16), "top16x64"),
        (Pattern(top=16, score="bounds", phase="decode"), "quest16x64-decode"),
        (Pattern(top=4, block=128, first=False, phase="prefill"), "top4x128-nofirst-prefill"),
        (Pattern(64, top=8), "D64-top8x64"),
        (Pattern(16, 256, top=8), "D16-W256-top8x64"),
        (Pattern(None, 5, 3, top=3, block=4), "stream-W5-I3-top3x4"),
        (Pattern(16, top=16, over="kept"), "D16-ktop16x64"),
        (Pattern(top=16, score="random"), "random16x64"),
        (Pattern(top=16, score="random", seed=3), "random16x64-seed3"),
        (Pattern(snap=1024), "snap1024x64"),
        (Pattern(snap=512, pool="max", kernel=7), "snap512x64-max7"),
        (Pattern(sinks=4, snap=512), "stream-I4-snap512x64"),
    ],
)
def test_labels(pattern, label):
    assert pattern.label == label
    assert Pattern.from_label(label) == pattern


@given(any_patterns)
def test_a_label_and_a_dict_say_the_whole_pattern(pattern):
    assert Pattern.from_label(pattern.label) == pattern
    assert PatternMap.from_dict(pattern.to_dict(), 1, 1).rows == ((pattern,),)


@given(st.lists(st.lists(any_patterns, min_size=2, max_size=3), min_size=1, max_size=3))
def test_a_map_label_and_a_dict_say_the_whole_map(rows):
    heads = min(len(row) for row in rows)
    blocks = {p.block for row in rows for p in row if p.top}
    assume(len(blocks) <= 1)
    made = PatternMap(tuple(tuple(row[:heads]) for row in rows))
    assert PatternMap.from_label(made.label, made.layers, heads) == made
    assert PatternMap.from_dict(made.to_dict(), made.layers, heads) == made


@pytest.mark.parametrize("label", ["", "16", "D", "d16", "D16-I4-W256", "D16-W", "D16 W3", "D1.5", "stream-", "D16-"])
def test_what_is_no_label(label):
    with pytest.raises(ValueError, match=r"not a label; allowed: D<dilation> or stream, then -W<window> and -I<sinks>"):
        Pattern.from_label(label)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("tpo16x64", "'tpo16x64' is unknown, did you mean top, as in top16x64?"),
        ("qest16x64", "did you mean quest"),
        ("D64-topk8x64", "'topk8x64' is unknown, did you mean"),
        ("snapkv1024x64", "did you mean snap, as in snap1024x64?"),
        ("top16x64-decoding", "did you mean decode"),
        ("top16x64-no_first", "did you mean nofirst"),
        ("d16", "did you mean"),
        ("steam-W4", "did you mean stream"),
    ],
)
def test_an_unknown_word_names_the_nearest(label, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        Pattern.from_label(label)


def test_what_means_nothing_is_forgotten():
    """Equal patterns see the same: fields of a selection that is not there don't tell two patterns apart."""
    assert Pattern(16, block=32, score="bounds") == Pattern(16)
    assert Pattern(16, observe=8) == Pattern(16)
    assert Pattern(1, top=8).canonical == Pattern()
    assert Pattern(1, top=8).label == "D1-top8x64"


def test_plain_forms_of_before_are_as_they_were():
    """They stand in the ids of stages."""
    assert json.dumps(Pattern(16, 2, 1).to_dict()) == '{"dilation": 16, "window": 2, "sinks": 1}'
    made = PatternMap.per_layer([Pattern(), Pattern(None, 3)], 2)
    assert json.dumps(made.to_dict()) == (
        '{"dilation": [[1, 1], [null, null]], "window": [[0, 0], [3, 3]], "sinks": [[0, 0], [0, 0]]}'
    )
    assert Pattern(64, top=8).to_dict() == {
        "dilation": 64, "window": 0, "sinks": 0, "top": 8, "block": 64, "score": "mean",
    }  # fmt: skip


def test_what_a_prompt_sees():
    top = Pattern(16, top=4, block=8)
    for pattern, seen in [
        (top, top), (Pattern(16), Pattern(16)), (replace(top, phase="prefill"), top),
        (replace(top, phase="decode"), Pattern()), (Pattern(snap=99), Pattern()),
        (Pattern(1, top=4), Pattern(1, top=4)),
    ]:  # fmt: skip
        assert pattern.in_prompt == seen
        assert PatternMap.uniform(pattern, 1, 2).in_prompt == PatternMap.uniform(seen, 1, 2)
        assert not seen.needs_prompt


def test_one_block_length_a_layer():
    a, b = Pattern(top=4, block=16), Pattern(top=4, block=32)
    PatternMap.per_layer([a, b], 2)
    PatternMap.per_head([a, Pattern(top=9, block=16), Pattern(16)], 2)
    with pytest.raises(ValueError, match="pattern.block: heads of layer 0 select blocks of 16 and 32 tokens"):
        PatternMap.per_head([a, b], 2)


def test_map_labels_are_read_for_a_model():
    a, b, c = Pattern(), Pattern(64), Pattern(None, 8, 1)
    for label, made in [
        ("D64", PatternMap.uniform(b, 4, 2)),
        ("layers[D1,D64x2,stream-W8-I1]", PatternMap.per_layer([a, b, b, c], 2)),
        ("layers[D1, D64]", PatternMap.per_layer([a, b, a, b], 2)),  # in turn
        ("heads[stream-W8-I1,D1]", PatternMap.per_head([c, a], 4)),
        ("mixed[D1,D64|D64,D1]", PatternMap(((a, b), (b, a)) * 2)),
        ("mixed[D1x2|D64x2|D1,D64|D64]", PatternMap(((a, a), (b, b), (a, b), (b, b)))),
        ("heads[top16x64,D1]", PatternMap.per_head([Pattern(top=16), a], 4)),
        (
            "layers[top16x64x2,D64-quest2x8-decodex2]",
            PatternMap.per_layer(
                [Pattern(top=16)] * 2 + [Pattern(64, top=2, block=8, score="bounds", phase="decode")] * 2, 2
            ),
        ),
    ]:
        assert PatternMap.from_label(label, 4, 2) == made
    assert PatternMap.from_label("heads[D1,D64,D1,D64]", 1, 4).label == "heads[D1,D64,D1,D64]"
    for label, message in [
        ("heads[D1,D4,D1]", "names 3 heads, but the model has 2"),
        ("layers[D1x9]", "names 9 layers, but the model has 4"),
        ("layers[]", "not a label"),
        ("layers[D1,,D2]", "not a label"),
        ("layers[D1,D0]", r"pattern.dilation: got 0"),
        ("layers[D1x0]", "names 0 layers"),
        ("mixed[D1,D2|D1,D2,D1]", "names 3 heads, but the model has 2"),
        ("mixed[D1|D1|D1|D1|D1]", "names 5 layers, but the model has 4"),
        ("mixed[D1|]", "not a label"),
    ]:
        with pytest.raises(ValueError, match=message):
            PatternMap.from_label(label, 4, 2)


def test_map_labels_and_round_trip():
    a, b = Pattern(), Pattern(64)
    for made, label in [
        (PatternMap.uniform(b, 2, 3), "D64"),
        (PatternMap.per_layer([a, b, b], 2), "layers[D1,D64x2]"),
        (PatternMap.per_head([a, b], 3), "heads[D1,D64]"),
        (PatternMap(((a, b), (b, a))), "mixed[D1,D64|D64,D1]"),
    ]:
        assert made.label == label
        assert PatternMap.from_dict(made.to_dict(), made.layers, made.heads) == made


def test_a_map_is_shown_by_its_label():
    rows = [Pattern(), Pattern(dilation=64)]
    assert repr(PatternMap.per_layer(rows, 3)) == "PatternMap('layers[D1,D64]', layers=2, heads=3)"


def test_equal_maps_have_equal_plain_forms():
    by_list = build_map([[16, 16], [16, 16]], 0, 0, 2, 2)
    assert by_list.to_dict() == PatternMap.uniform(Pattern(16), 2, 2).to_dict()


def test_lists_over_layers_and_heads():
    assert build_map([1, 64], 0, 0, 2, 3) == PatternMap.per_layer([Pattern(), Pattern(64)], 3)
    assert build_map([1, None], 5, [0, 4], 3, 2, over="heads") == PatternMap.per_head(
        [Pattern(1, 5, 0), Pattern(None, 5, 4)], 3
    )
    tiled = build_map([1, 64], 0, 0, 3, 1, tile=True)
    assert [row[0].dilation for row in tiled] == [1, 64, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], "over layers has 3 entries, but the model has 2 layers"),
        ([[1, 2], [1]], "2 layers of 2 heads"),
        ([[1, 2], 3], "single value"),
        ([], "got an empty list; give 2 entries"),
    ],
)
def test_lists_of_the_wrong_length(value, message):
    with pytest.raises(ValueError, match=message):
        build_map(value, 0, 0, 2, 2)


def test_each_head_of_a_map_is_checked():
    """Equal patterns are made once, and True is not 1."""
    with pytest.raises(ValueError, match=r"^pattern.dilation: got True; it must be a whole number"):
        build_map([[1, True]], 0, 0, 1, 2)
    with pytest.raises(ValueError, match=r"^pattern.window: got 2.0"):
        build_map(4, [[2, 2.0]], 0, 1, 2)
    assert build_map(4, [[2, 0, 2]], 1, 1, 3).rows == ((Pattern(4, 2, 1), Pattern(4, 0, 1), Pattern(4, 2, 1)),)


def test_heads_that_share_keys_need_to_see_the_same_whatever_it_is_called():
    dense, sparse = Pattern(), Pattern(4)
    rows = PatternMap.per_head([dense, Pattern(1, 8), sparse, sparse], 3)
    held = rows.per_kv_head(2)
    assert (held.layers, held.heads) == (3, 2)
    assert held[2] == (dense, sparse)
    assert rows.per_kv_head(4) is rows.per_kv_head(None) is rows
    with pytest.raises(ValueError, match=r"heads 0 to 1 of layer 1 share keys .*but have D4, D4-W1;"):
        PatternMap((rows[0], (sparse, Pattern(4, 1), sparse, sparse))).per_kv_head(2)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"kv_heads: got {wrong}; it must divide the 4 heads"):
            rows.per_kv_head(wrong)
