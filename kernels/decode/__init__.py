"""`decode_attention`: one decoding step of one layer on a compact cache."""

from functools import lru_cache

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, head_patterns, on_device, pattern_tensors
from ratplus.kernels.decode.layout import slot_count
from ratplus.kernels.decode.ops import decode_op, equal_shares, run
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

    q: [B, H, d], k, v: [B, H_kv, d], projections of the new token, un-rotated. H is a multiple of H_kv: query head h
        attends to key head h // (H / H_kv), and heads that share keys read their cache once.
    logit, state: gate logits [B, H_kv, d] and the recurrent state (k, v) [B, H_kv, d] float32, updated IN PLACE; both
        None without a recurrence.
    keys, values: caches [B, slots, d], updated IN PLACE, finite everywhere (zeros where nothing was written). Key head
        h owns slots offsets[h]:offsets[h + 1], laid out as `decode/layout.py` says; offsets [H_kv + 1] (None: equal
        shares).
    positions: int64 [B], this token's position in each sequence (ragged batches are fine).
    dilation, window, sinks: ints, or int32 tensors [H_kv]; dilation None (in a tensor: -1) keeps nothing dilated.
    rope: (cos, sin) tables [max_len, d], float32, indexed by `positions`; rotates q and the stored key.

    Returns [B, H, d] in q's dtype. The caller sees to it that positions stay below the length that the caches were
    sized for. Raises ValueError for shapes or patterns that don't fit.
    """
    _check(q, k, v, logit, keys, values, state, positions, offsets, rope)
    heads = k.shape[1]
    chosen = implementation("decode_attention", q.shape[2], q, k, keys)
    k_state, v_state = (None, None) if state is None else state
    cos, sin = (None, None) if rope is None else rope
    settings = (dilation, window, sinks)
    compiling = torch.compiler.is_compiling()
    if not on_device(*settings, offsets):
        _check_slots(settings, offsets, keys.shape[1], heads)
    if compiling or chosen == "fused":
        tensors = pattern_tensors if compiling else _cached_tensors
        settings = tensors(*settings, heads, q.device)
    # Outside of a traced graph the operator's wrapper would only cost time: a step is short and has no gradients.
    with torch.no_grad():
        return (decode_op if compiling else run)(
            q, k, v, logit, keys, values, k_state, v_state, positions, *settings, offsets, cos, sin, chosen
        )


def _cached_tensors(
    dilation: Setting, window: Setting, sinks: Setting, heads: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """`pattern_tensors`, made once for int settings: no launches for them at every step."""
    if all(x is None or isinstance(x, int) for x in (dilation, window, sinks)):
        return _tensors_of_ints(dilation, window, sinks, heads, device)
    return pattern_tensors(dilation, window, sinks, heads, device)


# Nothing is ever dropped: a captured graph reads these tensors where they lie, and they take 1.5 KB a pattern.
_tensors_of_ints = lru_cache(maxsize=None)(pattern_tensors)


def _check_slots(settings: tuple, offsets: Tensor | None, slots: int, heads: int) -> None:
    """Every head must own at least its sinks and its ring."""
    starts = [*equal_shares(slots, heads), slots] if offsets is None else offsets.tolist()
    for head, pattern in enumerate(head_patterns(*settings, heads)):
        least = slot_count(pattern.dilation, pattern.window, pattern.sinks, 0)
        if starts[head + 1] - starts[head] < least:
            raise ValueError(
                f"decode_attention: head {head} owns {starts[head + 1] - starts[head]} slots; its pattern "
                f"(window {pattern.window}, sinks {pattern.sinks}) needs at least {least}"
            )


def _check(q, k, v, logit, keys, values, state, positions, offsets, rope) -> None:
    if q.dim() != 3:
        raise ValueError(f"decode_attention: q has shape {tuple(q.shape)}; it must be [batch, heads, d_head]")
    batch, _, d_head = q.shape
    if k.dim() != 3 or k.shape[0] != batch or k.shape[2] != d_head or k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"decode_attention: k has shape {tuple(k.shape)}; it must equal q's {tuple(q.shape)}, or have fewer heads "
            "that divide q's"
        )
    heads = k.shape[1]
    for name, x in (("v", v), ("logit", logit)):
        if x is not None and x.shape != k.shape:
            raise ValueError(f"decode_attention: {name} has shape {tuple(x.shape)}; it must equal k's {tuple(k.shape)}")
    if (logit is None) != (state is None):
        raise ValueError("decode_attention: logit and state go together; give both (recurrence) or neither")
    if state is not None and any(held.shape != k.shape for held in state):
        shapes = [tuple(held.shape) for held in state]
        raise ValueError(f"decode_attention: the state has shapes {shapes}; both must be k's {tuple(k.shape)}")
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
