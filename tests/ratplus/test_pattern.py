"""Pattern and PatternMap: validation, labels, canonical forms. Visibility itself is in test_golden."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratplus import Pattern, PatternMap
from ratplus.pattern import build_map

patterns = st.builds(Pattern, st.none() | st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))


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
    ],
)
def test_labels(pattern, label):
    assert pattern.label == label
    assert Pattern.from_label(label) == pattern


@given(patterns)
def test_a_label_says_the_whole_pattern(pattern):
    assert Pattern.from_label(pattern.label) == pattern


@pytest.mark.parametrize("label", ["", "16", "D", "d16", "D16-I4-W256", "D16-W", "D16 W3", "D1.5", "stream-", "D16-"])
def test_what_is_no_label(label):
    with pytest.raises(ValueError, match=r"not a label; allowed: D<dilation> or stream, then -W<window> and -I<sinks>"):
        Pattern.from_label(label)


def test_map_labels_are_read_for_a_model():
    a, b, c = Pattern(), Pattern(64), Pattern(None, 8, 1)
    for label, made in [
        ("D64", PatternMap.uniform(b, 4, 2)),
        ("layers[D1,D64x2,stream-W8-I1]", PatternMap.per_layer([a, b, b, c], 2)),
        ("layers[D1, D64]", PatternMap.per_layer([a, b, a, b], 2)),  # in turn
        ("heads[stream-W8-I1,D1]", PatternMap.per_head([c, a], 4)),
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
