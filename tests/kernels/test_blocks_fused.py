"""The Triton kernels of block attention, in Triton's interpreter, against the definition and against eager.

Fresh memory is filled with NaN, so an element that a kernel leaves out shows.
"""

import os

import pytest
import torch
from helpers import gradients, projections, rope_tables

from ratplus.kernels import block_attention, block_decode_attention
from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.reference import block_attention_reference
from ratplus.kernels.blocks.selection import score_blocks, select_blocks
from ratplus.kernels.blocks.settings import Blocks, head_settings

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from ratplus.kernels.block_decode import fused as block_decode
from ratplus.kernels.blocks import fused, fused_selection

D_HEAD, BATCH, HEADS = 16, 2, 2


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    torch.manual_seed(0)
    empty, new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: _poison(new_empty(self, *a, **k)))


def _poison(x):
    return x.fill_(torch.nan) if x.is_floating_point() else x


def _per_head(*columns):
    return [torch.tensor(x, dtype=torch.int32) for x in columns]


CASES = {
    "blocks alone": ((None, 0, 0), {"top": 3, "block": 4}),
    "bounds, dilation, window, sinks": ((4, 5, 3), {"top": 3, "block": 4, "score": "bounds"}),
    "blocks of dilated keys": ((None, 3, 2), {"top": 2, "block": 3, "stride": 4, "first": False}),
    "blocks of many tiles, at random": ((8, 0, 0), {"top": 2, "block": 20, "score": "random"}),
    "each head its own": (_per_head([-1, 4], [5, 0], [2, 0]), {"top": _per_head([0, 3])[0], "block": 4}),
}


NAMES = [(name, 1) for name in CASES] + [("bounds, dilation, window, sinks", 3)]


@pytest.mark.parametrize(("name", "group"), NAMES)
def test_forward_and_its_gradients(name, group):
    static, choice = CASES[name]
    length, start, keys = (41, 0, 41) if group == 1 else (9, torch.tensor([3, 20]), 40)
    (q,) = projections(BATCH, HEADS * group, length, D_HEAD, parts=1)
    k, v = projections(BATCH, HEADS, keys, D_HEAD, parts=2)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, ids = block_attention(*inputs, *static, **choice, start=start, return_blocks=True)
    blocks = Blocks(**{name: value for name, value in choice.items() if name != "top"})
    settings = head_settings(*static, choice["top"], HEADS, blocks)
    starts = start.tolist() if isinstance(start, torch.Tensor) else [start] * BATCH
    expected, _, chosen = block_attention_reference(*exact, settings, blocks, [0, 1], starts, ids.shape[3])
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)
    for x, y in zip(gradients([out], inputs), gradients([expected], exact), strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-5, rtol=2e-5)


def test_more_choices_than_registers_hold(monkeypatch):
    """Then a program reads them for every tile of keys: the same result bit for bit."""
    inputs = [x.detach().requires_grad_() for x in projections(1, 2, 41, D_HEAD, parts=3)]
    results = []
    for held in (fused.HELD_SLOTS, 2):
        monkeypatch.setattr(fused, "HELD_SLOTS", held)
        out = block_attention(*inputs, 8, 3, 0, top=3, block=4)
        results.append([out, *gradients([out], inputs)])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def test_half_precision():
    inputs = [x.detach().requires_grad_() for x in projections(1, 2, 41, D_HEAD, parts=3, dtype=torch.float16)]
    out, ids = block_attention(*inputs, 8, 3, 0, top=3, block=4, return_blocks=True)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    settings = head_settings(8, 3, 0, 3, 2, Blocks(4))
    expected, _, chosen = block_attention_reference(*exact, settings, Blocks(4), [0, 1], [0], 3)
    assert out.dtype == torch.float16
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(out.double(), expected, atol=6e-3, rtol=6e-3)
    for x, y in zip(gradients([out], inputs), gradients([expected], exact), strict=True):
        assert x.dtype == torch.float16
        torch.testing.assert_close(x.double(), y, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("limit", [1, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
def test_choices_are_those_of_pytorch(monkeypatch, score, dtype, limit):
    """Ties, infinite scores, fewer rivals than wanted, tops of each head, no slot; few scores at a time and all."""
    monkeypatch.setitem(fused_selection.SCORES_LIMIT, "cuda", limit * 7 * BATCH * HEADS)
    start, length, heads = torch.tensor([0, 23]), 9, torch.tensor([5, 2])
    # Numbers whose sums are exact, in whatever order.
    q = torch.randint(-1, 2, (BATCH, 2 * HEADS, length, D_HEAD)).float()
    k = torch.randint(-8, 9, (BATCH, HEADS, 32, D_HEAD)) / 4
    k[:, :, 4:8] = k[:, :, 8:12]
    k[0, 0, 12:16, 3] = float("inf")
    q, k = q.to(dtype), k.to(dtype)
    for first, tops in ((True, [4, 0]), (False, [1, 3]), (True, [7, 6])):
        blocks = Blocks(4, score, first, seed=9)
        top, slots = torch.tensor(tops, dtype=torch.int32), max(tops)
        metadata = block_metadata(k, 4, score)
        expected = select_blocks(q, metadata, start, top, blocks, slots, heads)
        if score != "random":  # infinity times 0 is no number, which neither ranks alike
            scores = score_blocks(q, metadata, start[:, None], blocks, heads)
            known = ~scores.isnan().any(dim=3)
            assert known.float().mean() > 0.5
        else:
            known = torch.ones(BATCH, HEADS, length, dtype=torch.bool)
        found = fused_selection.select(q, metadata, start, top, blocks, slots, heads, 32)
        assert torch.equal(found[known], expected[known])
        one = fused_selection.select(q[:, :, 4:5], metadata, start + 4, top, blocks, slots, heads, 28)
        assert torch.equal(one[known[:, :, 4:5]], expected[:, :, 4:5][known[:, :, 4:5]])
    assert fused_selection.select(q, metadata, start, top * 0, blocks, 0, heads, 32).shape == (BATCH, HEADS, length, 0)


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_lists_of_a_tile(monkeypatch, limit):
    monkeypatch.setattr(fused, "FLAGS_LIMIT", limit)
    ids = torch.randint(-1, 9, (2, 2, 21, 3), dtype=torch.int32)
    lists, counts = fused.tile_lists(ids, 8, 9)
    for b in range(2):
        for h in range(2):
            for tile in range(3):
                chosen = sorted(set(ids[b, h, 8 * tile : 8 * tile + 8].flatten().tolist()) - {-1})
                assert lists[b, h, tile, : counts[b, h, tile]].tolist() == chosen
    lists, counts = fused.query_lists(ids, 8, 9)
    for b in range(2):
        for h in range(2):
            for block in range(9):
                tiles = sorted(set((ids[b, h] == block).any(dim=1).nonzero().flatten().div(8).int().tolist()))
                assert lists[b, h, block, : counts[b, h, block]].tolist() == tiles


@pytest.mark.parametrize(("name", "group"), NAMES)
def test_steps_are_those_of_eager(monkeypatch, name, group):
    """Caches, metadata, state, choice and output, step by step, ragged, over the border of a block."""
    static, choice = CASES[name]
    blocks = Blocks(**{name: value for name, value in choice.items() if name != "top"})
    tables = rope_tables(torch.arange(50), D_HEAD)
    keys, values = (torch.randn(BATCH, HEADS, 50, D_HEAD) for _ in range(2))
    metadata = torch.randn(BATCH, HEADS, 50 // blocks.span, blocks.parts, D_HEAD)
    state = [torch.randn(BATCH, HEADS, D_HEAD) for _ in range(2)]
    held = [[x.clone() for x in (keys, values, metadata, *state)] for _ in range(2)]
    monkeypatch.setattr(block_decode, "choose_splits", lambda *shapes: group)  # 1, or 3
    for step in range(3):
        positions = torch.tensor([9, 37]) + step  # tokens 11 and 39 end blocks
        token = [torch.randn(BATCH, n * HEADS, D_HEAD) for n in (group, 1, 1, 1)]
        results = []
        for way, (keys, values, metadata, *state) in zip(("fused", "eager"), held, strict=True):
            monkeypatch.setenv("RATPLUS_KERNELS", way)
            results.append(
                block_decode_attention(
                    *token, keys, values, metadata, tuple(state), positions, *static, **choice, rope=tables,
                    return_blocks=True,
                )
            )  # fmt: skip
        (out, ids), (expected, chosen) = results
        assert torch.equal(ids, chosen)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(*held, atol=1e-5, rtol=1e-5)
