"""Settings of patterns as the operators take them: every kind of value, the far keys that they name, and the groups."""

import re

import numpy as np
import pytest
import torch

from ratplus.kernels.attention.patterns import HeadPattern, group_heads, head_patterns, pattern_tensors, per_head
from ratplus.kernels.blocks.settings import Blocks, HeadSetting, group_settings, head_settings
from ratplus.pattern import Pattern


@pytest.mark.parametrize(
    "value",
    [4, [4, 4, 4], (4, 4, 4), torch.tensor([4, 4, 4]), torch.tensor([4, 4, 4], dtype=torch.int32), torch.tensor(4)],
)
def test_one_value_or_one_for_each_head(value):
    assert per_head("window", value, 3) == [4, 4, 4]
    assert head_patterns(value, value, value, 3) == [HeadPattern(4, 4, 4)] * 3
    for made in pattern_tensors(value, 0, [1, 2, 3], 3, torch.device("cpu"))[1:]:
        assert (made.dtype, made.shape) == (torch.int32, (3,))


@pytest.mark.parametrize(
    "value",
    [
        True, False, None, "4", "444", 4.0, {4}, {4: 4}, np.float32(4), [4, 4], [4] * 4, [4, 4, "4"], [4, 4, 4.0],
        [4, 4, None], torch.tensor([4, 4]), torch.tensor([4.0, 4.0, 4.0]), torch.tensor([True, True, True]),
        torch.zeros(3, 1, dtype=torch.int64),
    ],
)  # fmt: skip
def test_what_is_no_setting(value):
    with pytest.raises(ValueError, match="^window is "):
        per_head("window", value, 3)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0, 0, 0), "dilation is 0; it must be at least 1, or None (or -1)"), ((-2, 0, 0), "dilation is -2"),
        ((1, -1, 0), "window is -1 and sinks is 0; both must be 0 or more"),
        ((1, 0, -1), "window is 0 and sinks is -1"),
        (([1, 0], 0, 0), "dilation is 0"), ((1, [0, -1], 0), "window is -1"), ((1, 0, [0, -1]), "sinks is -1"),
    ],
)  # fmt: skip
def test_impossible_settings(values, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        head_patterns(*values, 2)
    assert head_patterns(None, 0, 0, 2) == head_patterns(-1, 0, 0, 2) == [HeadPattern(-1, 0, 0)] * 2


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("dilation", [-1, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("sinks", [0, 1, 2, 5, 7, 40])
def test_far_keys_by_a_loop(length, dilation, sinks):
    pattern = HeadPattern(dilation, 0, sinks)
    far = [p for p in range(length) if p < sinks or (dilation > 0 and (p + 1) % dilation == 0)]
    assert [p for part in pattern.far_slices(length) for p in range(length)[part]] == far
    assert pattern.far_length(length) == len(far)
    for window in (0, 1, length - 2, length - 1, length):
        if window < 0:
            continue
        own = HeadPattern(dilation, window, sinks)
        seen = Pattern(None if dilation == -1 else dilation, window, sinks).visible(length)
        dense = bool((seen == np.tri(length, dtype=bool)).all())
        assert dense or not own.is_dense(length), "what counts as dense sees everything"
        assert own.is_dense(length) == (dilation == 1 or window >= length - 1 or sinks >= length)
        assert own.is_nothing == (dilation == -1 and window == 0 and sinks == 0)


def test_heads_of_one_pattern_are_a_group():
    a, b = HeadPattern(2, 0, 0), HeadPattern(2, 1, 0)
    assert group_heads([b, a, b, a]) == {b: [0, 2], a: [1, 3]}
    assert list(group_heads([b, a])) == [b, a]


# ---- blocks ----------------------------------------------------------------------------------------------------


def test_values_of_blocks():
    assert (Blocks(4).score, Blocks(4).first, Blocks(4).stride, Blocks(4).seed) == ("mean", True, 1, 0)
    assert (Blocks(4).span, Blocks(4, stride=3).span) == (4, 12)
    assert [Blocks(4, score).parts for score in ("mean", "bounds", "random")] == [1, 2, 0]
    assert [Blocks(4, stride=2).reach(n) for n in (0, 1, 7, 8, 9, 16)] == [0, 1, 1, 1, 2, 2]
    for name in ("block", "stride"):
        for wrong in (0, -1, True, 2.0, "2", None):
            with pytest.raises(ValueError, match=rf"^{name} is {wrong!r}; it must be a whole number ≥ 1"):
                Blocks(**{"block": 4, name: wrong})
    with pytest.raises(ValueError, match="score is 'meen'; use one of mean, bounds, random"):
        Blocks(4, "meen")


@pytest.mark.parametrize(("first", "least"), [(True, 2), (False, 1)])
def test_least_blocks(first, least):
    blocks = Blocks(4, first=first)
    for top in (0, least, 9):
        (found,) = head_settings(None, 1, 2, top, 1, blocks)
        assert found == HeadSetting(HeadPattern(-1, 1, 2), top)
    for top in (-1, least - 1):
        if top:
            with pytest.raises(ValueError, match=f"top is {top}; .* give at least {least}, or 0 for"):
                head_settings(None, 1, 2, [top, 9], 2, blocks)


def test_every_setting_of_a_head_is_in_its_group():
    settings = head_settings(
        [2, 3, 2, 2, 2, 2], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [2, 2, 2, 2, 3, 2], 6, Blocks(4)
    )
    assert list(group_settings(settings).values()) == [[0, 5], [1], [2], [3], [4]]
    alike = head_settings(2, 0, 0, 2, 3, Blocks(4))
    assert group_settings(alike) == {alike[0]: [0, 1, 2]}


@pytest.mark.parametrize(
    ("top", "stride", "length", "dense"), [(3, 1, 12, True), (3, 1, 13, False), (3, 2, 12, False), (2, 1, 8, True)]
)
def test_all_blocks_are_dense(top, stride, length, dense):
    setting = HeadSetting(HeadPattern(-1, 0, 0), top)
    assert setting.is_dense(length, Blocks(4, stride=stride)) == dense
    assert HeadSetting(HeadPattern(1, 0, 0), 0).is_dense(length, Blocks(4))
