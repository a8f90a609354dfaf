"""Scores of blocks by means on tensor cores, in Triton's interpreter: as exact as those of float32."""

import os

import pytest
import torch

from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.selection import score_blocks
from ratplus.kernels.blocks.settings import Blocks

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from ratplus.kernels.blocks import fused_scores, fused_selection

NOISE = 4e-7  # of float32 sums of 16 products, relative to the sum of their sizes


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch):
    """The interpreter holds bfloat16 as bits, and would multiply these."""
    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *more):
        if a.dtype.is_bf16():
            a, b = (TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32) for x in (a, b))
        return plain(self, a, b, *more)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def _case(dtype, score, group, size=1.0):
    """q, metadata, start; float64 scores [B, H_kv, T, n], and the sums of their products' sizes."""
    torch.manual_seed(0)
    q = torch.randn(2, 2 * group, 19, 16).to(dtype)
    k = (torch.randn(2, 2, 92, 16) * size).to(dtype)
    metadata, start = block_metadata(k, 4, score), torch.tensor([3, 70])
    exact, sizes = (
        score_blocks(*x, start[:, None], Blocks(4, score), torch.arange(2))
        for x in ((q.double(), metadata.double()), (q.double().abs(), metadata.double().abs()))
    )
    return q, metadata, start, exact, sizes


@pytest.mark.parametrize("size", [1.0, 1e-5, 3e4])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_exact_to_float32(dtype, group, size):
    """Also of keys so small that float16 has few digits for them, and so large that it has hardly room."""
    size = min(size, 1e4) if dtype == torch.float16 else size
    q, metadata, start, exact, sizes = _case(dtype, "mean", group, size)
    parts = fused_scores.factors(metadata, dtype)
    assert parts.dtype == dtype
    found = fused_scores.scores(q, parts, start, 2, 19, 22, 32, Blocks(4))
    assert found.shape == (2, 2, 17, 32)
    own = (start[:, None] + torch.arange(2, 19)) // 4
    rival = (torch.arange(22) < own[:, :, None])[:, None].expand(2, 2, 17, 22)
    error = (found[..., :22].double() - exact[:, :, 2:, :22]).abs() / sizes[:, :, 2:, :22]
    assert error[rival].max() < NOISE


@pytest.mark.parametrize("score", ["mean", "bounds"])
def test_choices_are_the_definitions_where_scores_differ(score):
    q, metadata, start, exact, sizes = _case(torch.bfloat16, score, 1)
    blocks, top = Blocks(4, score), torch.tensor([4, 4], dtype=torch.int32)
    found = fused_selection.select(q, metadata, start, top, blocks, 4, torch.arange(2), 92).long()
    own = (start[:, None] + torch.arange(19)) // 4
    index = torch.arange(exact.shape[3])
    rival = ((index > 0) & (index < own[:, :, None]))[:, None].expand_as(exact)
    best = exact.masked_fill(~rival, float("-inf")).topk(2, dim=3)
    taken = torch.where(found[..., 2:] >= 0, exact.gather(3, found[..., 2:].clamp(min=0)), float("-inf"))
    assert torch.equal(taken == float("-inf"), best.values == float("-inf"))
    difference = torch.where(taken == best.values, 0.0, (taken - best.values).abs())
    assert (difference <= NOISE * sizes.amax(dim=3, keepdim=True)).all()


def test_bounds_float32_and_single_queries_are_not_for_tensor_cores():
    q = torch.zeros(1, 1, 2, 16, dtype=torch.bfloat16)
    assert fused_scores.takes(q, Blocks(4))
    assert fused_scores.takes(q.half(), Blocks(4))
    assert not fused_scores.takes(q.float(), Blocks(4))
    assert not fused_scores.takes(q[:, :, :1], Blocks(4))
    assert not fused_scores.takes(q, Blocks(4, "bounds"))
