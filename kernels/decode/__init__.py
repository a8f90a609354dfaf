"""`decode_attention`: one decoding step of one layer on a compact cache."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, head_patterns
from ratplus.kernels.decode.eager import decode_attention_eager
from ratplus.kernels.decode.layout import slot_count
from ratplus.kernels.decode.reference import decode_attention_reference
from ratplus.kernels.dispatch import implementation

__all__ = ["decode_attention"]

Pair = tuple[Tensor, Tensor]


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    state: Pair | None,
    positions: Tensor,
    dilation: Setting,
    window: Setting,
    sinks: Setting,
    offsets: Tensor | None = None,
    rope: Pair | None = None,
) -> Tensor:
    """Takes one new token a sequence: steps the recurrence, writes the caches, attends. No gradients.

    q, k, v: [B, H, d], projections of the new token, un-rotated.
    logit, state: gate logits [B, H, d] and the recurrent state (k, v) [B, H, d] float32, updated IN PLACE; both None
        without a recurrence.
    keys, values: caches [B, slots, d], updated IN PLACE, finite everywhere (zeros where nothing was written). Head h
        owns slots offsets[h]:offsets[h + 1], laid out as `decode/layout.py` says; offsets [H + 1] (None: equal shares).
    positions: int64 [B], this token's position in each sequence (ragged batches are fine).
    dilation, window, sinks: ints, or int32 tensors [H]; dilation None (in a tensor: -1) keeps nothing dilated.
    rope: (cos, sin) tables [max_len, d], float32, indexed by `positions`; rotates q and the stored key.

    Returns [B, H, d] in q's dtype. The caller sees to it that positions stay below the length that the caches were
    sized for. Raises ValueError for shapes or patterns that don't fit.
    """
    _check(q, k, v, logit, keys, values, state, positions, offsets, rope)
    heads = q.shape[1]
    patterns = head_patterns(dilation, window, sinks, heads)
    starts = _starts(offsets, keys.shape[1], heads)
    for head, pattern in enumerate(patterns):
        least = slot_count(pattern.dilation, pattern.window, pattern.sinks, 0)
        if starts[head + 1] - starts[head] < least:
            raise ValueError(
                f"decode_attention: head {head} owns {starts[head + 1] - starts[head]} slots; its pattern "
                f"(window {pattern.window}, sinks {pattern.sinks}) needs at least {least}"
            )
    run = decode_attention_reference if implementation(q.device) == "reference" else decode_attention_eager
    with torch.no_grad():
        out = run(q, k, v, logit, keys, values, state, positions, patterns, starts[:-1], rope)
    return out.to(q.dtype)


def _starts(offsets: Tensor | None, slots: int, heads: int) -> list[int]:
    """First slot of each head and, last, the number of slots."""
    if offsets is not None:
        return offsets.tolist()
    return [head * (slots // heads) for head in range(heads + 1)]


def _check(q, k, v, logit, keys, values, state, positions, offsets, rope) -> None:
    if q.dim() != 3:
        raise ValueError(f"decode_attention: q has shape {tuple(q.shape)}; it must be [batch, heads, d_head]")
    batch, heads, d_head = q.shape
    for name, x in (("k", k), ("v", v), ("logit", logit)):
        if x is not None and x.shape != q.shape:
            raise ValueError(f"decode_attention: {name} has shape {tuple(x.shape)}; it must equal q's {tuple(q.shape)}")
    if (logit is None) != (state is None):
        raise ValueError("decode_attention: logit and state go together; give both (recurrence) or neither")
    if state is not None and any(held.shape != q.shape for held in state):
        shapes = [tuple(held.shape) for held in state]
        raise ValueError(f"decode_attention: the state has shapes {shapes}; both must be q's {tuple(q.shape)}")
    if keys.dim() != 3 or keys.shape[0] != batch or keys.shape[2] != d_head or values.shape != keys.shape:
        raise ValueError(
            f"decode_attention: keys {tuple(keys.shape)} and values {tuple(values.shape)} must both be "
            f"[batch, slots, d_head] = [{batch}, slots, {d_head}]"
        )
    if positions.shape != (batch,) or positions.dtype != torch.int64:
        raise ValueError(
            f"decode_attention: positions are {positions.dtype} {tuple(positions.shape)}; they must be int64 [{batch}]"
        )
    if offsets is not None and offsets.shape != (heads + 1,):
        raise ValueError(f"decode_attention: offsets have shape {tuple(offsets.shape)}; they must be [{heads + 1}]")
    if offsets is None and keys.shape[1] % heads:
        raise ValueError(
            f"decode_attention: {keys.shape[1]} slots can't be shared equally by {heads} heads; pass offsets"
        )
    if rope is not None and any(table.dim() != 2 or table.shape[1] != d_head for table in rope):
        shapes = [tuple(table.shape) for table in rope]
        raise ValueError(f"decode_attention: rope tables have shapes {shapes}; both must be [max_len, {d_head}]")
