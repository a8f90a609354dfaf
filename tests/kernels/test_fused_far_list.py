"""The forward kernel's way to read the far list without addresses, in Triton's interpreter, against the definition."""

import os

import pytest
import torch
from helpers import projections

from ratplus.kernels.attention.patterns import head_patterns
from ratplus.kernels.attention.reference import dilated_attention_reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from ratplus.kernels.attention import fused as attention
from ratplus.kernels.attention.boxes import NONE, query_boxes


def _check_forward(monkeypatch, q, k, v, columns):
    """The forward kernel alone; returns whether it read the far list through descriptors."""
    asked, possible = [], attention.lists_have_boxes
    monkeypatch.setattr(attention, "tiles", lambda *_: attention.Tiles(32, 16, 1, 1, boxes=True))
    monkeypatch.setattr(attention, "without_boxes", lambda *_: attention.Tiles(16, 32, 1, 1))
    monkeypatch.setattr(attention, "lists_have_boxes", lambda *a: asked.append(possible(*a)) or asked[-1])
    columns = [torch.tensor(x, dtype=torch.int32) for x in columns]
    expected = dilated_attention_reference(*(x.double() for x in (q, k, v)), head_patterns(*columns, k.shape[1]))
    limit = {torch.float32: 2e-5, torch.float16: 6e-3}[q.dtype]
    for x, y in zip(attention.forward(q, k, v, *columns, q.shape[2]), expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), atol=limit, rtol=limit)
    return asked


def test_attention_by_descriptors_of_the_far_list(monkeypatch):
    """Far lists of no, one, two and many whole tiles, behind sinks and windows, with keys that are shared."""
    columns = [1, 3, 1, -1, 2], [0, 5, 90, 33, 0], [0, 4, 17, 40, 33]
    for length, group, dtype in ((1, 1, torch.float32), (107, 2, torch.float32), (64, 1, torch.float16)):
        q, k, v = projections(1, 5 * group, length, 16, parts=3, dtype=dtype)
        assert _check_forward(monkeypatch, q, k[:, ::group], v[:, ::group], columns) == [True]
        monkeypatch.undo()


@pytest.mark.parametrize(("row", "at", "described"), [(52, 0, True), (52, 4, True), (52, 1, False), (51, 0, False)])
def test_descriptors_are_made_only_of_rows_that_they_can_read(monkeypatch, row, at, described):
    """Their rows start at multiples of 16 bytes, 4 elements here; other views are read by addresses."""
    z = torch.randn(1, 2, 40, row)
    q, k, v = (z[..., n * 16 + at :][..., :16] for n in (0, 1, 2 if row - at >= 48 else 1))
    assert _check_forward(monkeypatch, q, k, v, ([1, 1], [0, 0], [0, 0])) == [described]


@pytest.mark.parametrize(
    ("entries", "forward", "keys"),
    [
        (0, "forward", "dkv"),
        (512, "forward", "dkv"),
        (513, "forward", "dkv, long list"),
        (2048, "forward", "dkv, long list"),
        (2049, "forward, long list", "dkv, long list"),
        (8192, "forward, long list", "dkv, long list"),
        (8193, "forward, very long list", "dkv, long list"),
    ],
)
def test_the_lists_length_chooses_the_tiles(entries, forward, keys):
    assert attention.forward_kind(entries) == forward
    assert attention.far_keys_kind(entries) == keys


def test_keys_and_values_must_both_be_readable_by_descriptors():
    good = torch.zeros(2, 3, 8, 16)
    odd = torch.zeros(good.numel() + 1)[1:].view_as(good)  # its address is no multiple of 16 bytes
    assert attention.lists_have_boxes(good, good)
    assert not attention.lists_have_boxes(good, odd)
    assert not attention.lists_have_boxes(odd, good)
    assert not attention.lists_have_boxes(good[:, :, :0], good[:, :, :0])


def test_every_entry_has_tiles_for_addresses():
    for (kind, _), size in attention.TILES.items():
        other = attention.without_boxes(kind, size)
        assert not other.boxes
        assert (other == size) == (not size.boxes)


@pytest.mark.parametrize(
    ("length", "d_head", "dtype", "possible"),
    [
        (4, 16, torch.float32, True), (8, 16, torch.float32, True), (0, 16, torch.float32, False),
        # Rows of log-sum-exps of 12 and 20 bytes; heads of 12 channels in bfloat16, which are 24 bytes.
        (3, 16, torch.float32, False), (5, 16, torch.float32, False), (4, 12, torch.bfloat16, False),
    ],
)  # fmt: skip
def test_which_tiles_of_queries_have_descriptors(length, d_head, dtype, possible):
    """Addresses and all strides but the last must be multiples of 16 bytes."""
    q = torch.zeros(2, 3, length, d_head, dtype=dtype)
    d_out, lse, delta = torch.zeros(2, length, 3, d_head, dtype=dtype), *(torch.zeros(2, 3, length) for _ in range(2))
    found = query_boxes(q, d_out, lse, delta, 2)
    assert (found != NONE) == possible
    if possible:
        assert [box.block_shape for box in found] == [[1, 1, 2, d_head]] * 2 + [[1, 2]] * 2
        moved = torch.zeros(q.numel() + 1, dtype=dtype)[1:].view_as(q)  # its address is no such multiple
        assert query_boxes(moved, d_out, lse, delta, 2) == NONE
        repeated = q[:1].expand(2, -1, -1, -1)  # rows that lie in one place have no step from one to the next
        assert query_boxes(repeated, d_out, lse, delta, 2) == NONE
        assert query_boxes(q[:1].expand(1, -1, -1, -1), d_out[:1], lse[:1], delta[:1], 2) != NONE
