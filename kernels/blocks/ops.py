"""Block attention as a `torch.library` operator, so that `torch.compile` sees one node.

Which blocks were chosen is an output without a gradient. The backward pass takes it from the forward pass and never
chooses again: near ties could fall differently there. A forward pass that is computed anew, for activation
checkpointing, chooses the same, since it is deterministic.
"""

from importlib import import_module

import torch
from torch import Tensor

from ratplus.kernels.attention.ops import time_major
from ratplus.kernels.blocks.settings import Blocks


def _home(implementation: str):
    """The module whose functions run; Triton is imported only when the fused one is asked for."""
    return import_module(f"ratplus.kernels.blocks.{implementation}")


@torch.library.custom_op("ratplus::block_attention", mutates_args=())
def block_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    top: Tensor,
    heads: Tensor,
    start: Tensor,
    metadata: Tensor | None,
    block: int,
    score: str,
    first: bool,
    stride: int,
    seed: int,
    slots: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [B, H, T, d], lse [B, H, T] float32, ids int32 [B, H_kv, T, slots]."""
    blocks = Blocks(block, score, first, stride, seed)
    return _home(implementation).forward(q, k, v, dilation, window, sinks, top, heads, start, metadata, blocks, slots)


@torch.library.custom_op("ratplus::block_attention_backward", mutates_args=())
def block_attention_backward_op(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    top: Tensor,
    start: Tensor,
    out: Tensor,
    lse: Tensor,
    ids: Tensor,
    block: int,
    score: str,
    first: bool,
    stride: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    blocks = Blocks(block, score, first, stride)
    return _home(implementation).backward(d_out, q, k, v, dilation, window, sinks, top, start, out, lse, ids, blocks)


@block_attention_op.register_fake
def _(
    q,
    k,
    v,
    dilation,
    window,
    sinks,
    top,
    heads,
    start,
    metadata,
    block,
    score,
    first,
    stride,
    seed,
    slots,
    implementation,
):
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    ids = q.new_empty(q.shape[0], k.shape[1], q.shape[2], slots, dtype=torch.int32)
    return time_major(q), q.new_empty(q.shape[:3], dtype=lse_dtype), ids


@block_attention_backward_op.register_fake
def _(d_out, q, k, v, *rest):
    return time_major(q), time_major(k), time_major(v)


def _setup_context(ctx, inputs, output):
    q, k, v, dilation, window, sinks, top, _, start, _, *ctx.blocks, _seed, _slots, ctx.implementation = inputs
    out, lse, ids = output
    ctx.save_for_backward(q, k, v, dilation, window, sinks, top, start, out, lse, ids)


def _backward(ctx, d_out, _d_lse, _d_ids):
    gradients = block_attention_backward_op(d_out, *ctx.saved_tensors, *ctx.blocks, ctx.implementation)
    return *gradients, *(None,) * 14


block_attention_op.register_autograd(_backward, setup_context=_setup_context)
