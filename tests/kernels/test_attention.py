"""Dilated attention: eager against the float64 definition, its gradients, and visibility against the paper's masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import golden, gradients, projections

from ratplus.kernels import dilated_attention
from ratplus.kernels.attention import eager
from ratplus.kernels.attention.patterns import HeadPattern, head_patterns
from ratplus.kernels.attention.reference import dilated_attention_reference, visible_mask
from ratplus.kernels.bench.timing import peak_bytes

LENGTHS = [1, 7, 33, 64, 130]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 8 to 32 queries and few rows at a time, so that short sequences cross block borders."""
    for name, value in (("BAND_BLOCK", (8, 16)), ("WIDE_BAND_BLOCK", (8, 16)), ("SELF_BLOCK", 32)):
        monkeypatch.setattr(f"ratplus.kernels.attention.eager.{name}", value)
    monkeypatch.setattr("ratplus.kernels.attention.eager.SCORES_LIMIT", 2000)
    torch.manual_seed(0)


def _check(length, dilation, window, sinks, heads=2, tolerance=2e-6, group=1):
    """`heads` of keys, each with `group` query heads."""
    q, k, v = (x.detach() for x in projections(2, heads * group, length, 8, parts=3, dtype=torch.float64))
    q, k, v = (x.requires_grad_() for x in (q, k[:, :heads], v[:, :heads]))
    single = [x.detach().float().requires_grad_() for x in (q, k, v)]
    patterns = head_patterns(dilation, window, sinks, heads)
    expected, expected_lse = dilated_attention_reference(q, k, v, patterns)
    actual, lse = dilated_attention(*single, dilation, window, sinks, return_lse=True)
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse, expected_lse.float(), atol=5e-6, rtol=0)
    assert torch.allclose(dilated_attention(*single, dilation, window, sinks), actual, atol=tolerance)
    for x, y in zip(gradients([actual], single), gradients([expected], [q, k, v])):
        torch.testing.assert_close(x.double(), y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dilation", [None, 1, 3, 4, 16])
def test_matches_float64_definition(length, dilation):
    for window in (0, 1, 5, 40, length):
        for sinks in (0, 3, 4, (dilation or 1) + 1):
            _check(length, dilation, window, sinks)


@pytest.mark.parametrize("length", [33, 130])
def test_per_head_patterns(length):
    dilation = torch.tensor([-1, 1, 16, 3, 16, -1], dtype=torch.int32)
    window = torch.tensor([5, 0, 0, 20, 0, 5], dtype=torch.int32)
    sinks = torch.tensor([4, 0, 0, 2, 0, 4], dtype=torch.int32)
    _check(length, dilation, window, sinks, heads=6)


@pytest.mark.parametrize("batch", [2, 4])
def test_as_many_sequences_as_heads(batch):
    """4 query heads share 2 heads of keys: sizes that are equal by chance must not be taken for one another."""
    q, k, v = (torch.randn(batch, heads, 9, 8) for heads in (4, 2, 2))
    repeated = (x.repeat_interleave(2, dim=1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q, *repeated, is_causal=True)
    for inputs in ((q, k, v), (q.clone().requires_grad_(), k, v)):
        torch.testing.assert_close(dilated_attention(*inputs, 1, 0, 0), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("heads", "group"), [(2, 3), (1, 4)])
@pytest.mark.parametrize("setting", [(1, 0, 0), (4, 0, 3), (3, 5, 0), (None, 20, 4)])
def test_query_heads_that_share_keys(heads, group, setting):
    """Grouped-query and multi-query: the same as with the keys repeated, which is how they are defined."""
    _check(70, *setting, heads=heads, group=group)
    q, k, v = projections(2, heads * group, 70, 8, parts=3)
    k, v = k[:, :heads], v[:, :heads]
    repeated = (x.repeat_interleave(group, dim=1) for x in (k, v))
    torch.testing.assert_close(dilated_attention(q, k, v, *setting), dilated_attention(q, *repeated, *setting))


def test_per_head_patterns_of_query_heads_that_share_keys():
    _check(70, *(torch.tensor(x, dtype=torch.int32) for x in ([-1, 4], [5, 0], [4, 1])), group=3)


def test_gradcheck():
    inputs = [x.detach().requires_grad_() for x in projections(1, 2, 20, 4, parts=3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda q, k, v: dilated_attention(q, k, v, 4, 3, 2), inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    half = [x.detach().requires_grad_() for x in projections(1, 2, 130, 16, parts=3, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in half]
    actual = dilated_attention(*half, 4, 8, 2)
    expected, _ = dilated_attention_reference(*exact, head_patterns(4, 8, 2, 2))
    assert actual.dtype == dtype
    assert (actual.double() - expected).abs().max() < 2e-2
    for x, y in zip(gradients([actual], half), gradients([expected], exact)):
        assert x.dtype == dtype
        assert (x.double() - y).norm() / y.norm() < 1e-2


def test_dense_is_plain_causal_attention():
    q, k, v = projections(2, 3, 50, 8, parts=3)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for pattern in ((1, 0, 0), (None, 49, 0), (16, 49, 3), (None, 0, 50)):
        assert torch.equal(dilated_attention(q, k, v, *pattern), expected)


@pytest.mark.parametrize("pattern", [(64, 0, 0), (64, 30, 2)])
def test_no_square_object_at_long_length(monkeypatch, pattern):
    """T = 8000 would need 256 MB for one float32 score matrix; forward and backward in blocks, a few megabytes."""
    monkeypatch.undo()  # blocks of the size that users have
    q, k, v = (x.detach().requires_grad_() for x in projections(1, 1, 8000, 4, parts=3))

    def both_ways():
        out, lse = dilated_attention(q, k, v, *pattern, return_lse=True)
        return out, lse, torch.autograd.grad(out.sum(), (q, k, v))

    assert 0 < peak_bytes(both_ways, "cpu") < 24e6
    assert 0 < peak_bytes(lambda: dilated_attention(q, k, v, *pattern), "cpu") < 24e6


def test_a_row_of_a_long_sequence():
    q, k, v = projections(1, 1, 20000, 4, parts=3)
    out = dilated_attention(q, k, v, 64, 0, 0)
    seen = visible_mask(HeadPattern(64, 0, 0), 200)[-1].nonzero().flatten()
    weights = torch.softmax(q[0, 0, 199] @ k[0, 0, seen].T / 2, dim=0)
    torch.testing.assert_close(out[0, 0, 199], weights @ v[0, 0, seen])


def _grid():
    """(length, config, mask) of the paper's reference masks."""
    data = golden("masks")
    for name in data:
        if name.endswith("_cfg"):
            length = int(name.split("_")[0][1:])
            for row, bits in zip(data[name], data[name.replace("_cfg", "_bits")]):
                yield length, tuple(int(x) for x in row), np.unpackbits(bits)[: length**2].reshape(length, length)


def test_golden_masks_predicate():
    for length, config, mask in _grid():
        assert np.array_equal(visible_mask(HeadPattern(*config), length).numpy(), mask), (length, config)


def test_golden_masks_through_eager_attention():
    """With q = 0 every visible key weighs the same, and one-hot values show which those are."""
    checked = 0
    for length, config, mask in _grid():
        if length > 100:
            continue
        zeros = torch.zeros(1, 1, length, length)
        out, _ = dilated_attention(zeros, zeros, torch.eye(length).expand(1, 1, -1, -1), *config, return_lse=True)
        assert np.array_equal((out[0, 0] > 1e-4).numpy(), mask.astype(bool)), (length, config)
        checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0), "dilation is 0; it must be at least 1, or None"),
        ((4, -1, 0), "window is -1 and sinks is 0; both must be 0 or more"),
        ((4, 0, 1.5), "sinks is 1.5; it must be an int"),
        ((torch.tensor([4, 4, 4]), 0, 0), "it must hold one int for each of the 2 heads"),
        ((torch.tensor([4.0, 4.0]), 0, 0), "it must hold integers"),
    ],
)
def test_clear_errors(arguments, message):
    q, k, v = projections(1, 2, 8, 4, parts=3)
    with pytest.raises(ValueError, match=message):
        dilated_attention(q, k, v, *arguments)
    with pytest.raises(ValueError, match="all three must be the same"):
        dilated_attention(q, k[:, :, :4], v, 4, 0, 0)
    three = torch.cat((q, q[:, :1]), dim=1)
    with pytest.raises(ValueError, match="fewer heads, a divisor of q's"):
        dilated_attention(three, k, v, 4, 0, 0)


def test_scores_of_rows_stay_below_a_limit():
    """Of rows that are scored together, each with its heads of queries; one at least, however large it is."""
    plan = eager._Plan(HeadPattern(4, 3, 2), 40, torch.device("cpu"), (8, 16))
    widest = max((block.stop - block.start) * plan.columns(block) for block in plan.blocks)
    assert 100 < widest < 350
    for group in (1, 2, 3):
        chunk = plan.row_chunk(group)
        assert chunk * widest * group <= 2000 < (chunk + 1) * widest * group
    assert plan.row_chunk(100) == 1
