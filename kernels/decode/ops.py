"""One decoding step as a `torch.library` operator that names what it mutates, so that `torch.compile` sees one node."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, head_patterns
from ratplus.kernels.decode.eager import decode_attention_eager
from ratplus.kernels.decode.reference import decode_attention_reference


def equal_shares(slots: int, heads: int) -> list[int]:
    """First slot of each head where all own equally many."""
    return [head * (slots // heads) for head in range(heads)]


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    positions: Tensor,
    dilation: Setting,
    window: Setting,
    sinks: Setting,
    offsets: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    implementation: str,
) -> Tensor:
    """`decode_attention` by the named implementation; the fused one needs the settings as int32 [H] tensors."""
    state = None if k_state is None or v_state is None else (k_state, v_state)
    rope = None if cos is None or sin is None else (cos, sin)
    if implementation == "fused":
        from ratplus.kernels.decode.fused import step  # Triton is imported only here

        return step(
            q, k, v, logit, keys, values, k_state, v_state, positions, dilation, window, sinks, offsets, cos, sin
        )
    heads = k.shape[1]
    patterns = head_patterns(dilation, window, sinks, heads)
    starts = equal_shares(keys.shape[1], heads) if offsets is None else offsets.tolist()[:-1]
    step = decode_attention_reference if implementation == "reference" else decode_attention_eager
    return step(q, k, v, logit, keys, values, state, positions, patterns, starts, rope).to(q.dtype)


@torch.library.custom_op("ratplus::decode_attention", mutates_args=("keys", "values", "k_state", "v_state"))
def decode_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    positions: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    offsets: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    implementation: str,
) -> Tensor:
    """`run` with the settings as tensors."""
    return run(
        q, k, v, logit, keys, values, k_state, v_state, positions, dilation, window, sinks, offsets, cos, sin,
        implementation,
    )  # fmt: skip


@decode_op.register_fake
def _(q, *rest):
    return torch.empty_like(q, memory_format=torch.contiguous_format)
