"""One decoding step over selected blocks as a `torch.library` operator that names what it mutates."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting
from ratplus.kernels.block_decode.eager import block_decode_eager
from ratplus.kernels.block_decode.reference import block_decode_reference
from ratplus.kernels.blocks.settings import Blocks, head_settings


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    metadata: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    positions: Tensor,
    dilation: Setting,
    window: Setting,
    sinks: Setting,
    top: Setting,
    heads: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    block: int,
    score: str,
    first: bool,
    stride: int,
    seed: int,
    slots: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """`block_decode_attention` by the named implementation; the fused one needs int32 [H_kv] settings."""
    blocks = Blocks(block, score, first, stride, seed)
    if implementation == "fused":
        from ratplus.kernels.block_decode.fused import step  # Triton is imported only here

        return step(
            q, k, v, logit, keys, values, metadata, k_state, v_state, positions, dilation, window, sinks, top, heads,
            cos, sin, blocks, slots,
        )  # fmt: skip
    state = None if k_state is None or v_state is None else (k_state, v_state)
    rope = None if cos is None or sin is None else (cos, sin)
    settings = head_settings(dilation, window, sinks, top, k.shape[1], blocks)
    shared = (q, k, v, logit, keys, values, metadata, state, positions, settings, blocks)
    if implementation == "reference":
        out, ids = block_decode_reference(*shared, heads.tolist(), slots, rope)
    else:
        out, ids = block_decode_eager(*shared, heads, slots, rope)
    return out.to(q.dtype), ids


@torch.library.custom_op(
    "ratplus::block_decode_attention", mutates_args=("keys", "values", "metadata", "k_state", "v_state")
)
def block_decode_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    metadata: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    positions: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    top: Tensor,
    heads: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    block: int,
    score: str,
    first: bool,
    stride: int,
    seed: int,
    slots: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """`run` with the settings as tensors."""
    return run(
        q, k, v, logit, keys, values, metadata, k_state, v_state, positions, dilation, window, sinks, top, heads,
        cos, sin, block, score, first, stride, seed, slots, implementation,
    )  # fmt: skip


@block_decode_op.register_fake
def _(q, k, *rest):
    slots = rest[-2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[0], k.shape[1], slots, dtype=torch.int32)
