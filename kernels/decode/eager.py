"""One decoding step in PyTorch: vectorised over sequences, over heads that share a pattern, and queries of each."""

from itertools import pairwise

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import HeadPattern, group_heads
from ratplus.kernels.decode.layout import dilated_in_use, dilated_slot, ring_position, ring_slot, sink_slot
from ratplus.kernels.scan.reference import rotate

Pair = tuple[Tensor, Tensor]


def decode_attention_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    state: Pair | None,
    positions: Tensor,
    patterns: list[HeadPattern],
    offsets: list[int],
    rope: Pair | None,
) -> Tensor:
    """See `decode_attention`; `patterns` holds one pattern a key head, `offsets` the first slot of each."""
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    q, k, v = take_token(q, k, v, logit, state, positions, rope, dtype)
    q = q.to(keys.dtype).to(dtype) * q.shape[-1] ** -0.5
    k, v = k.to(keys.dtype), v.to(values.dtype)
    first, last = (int(x) for x in positions.aminmax())
    shared = q.shape[1] > k.shape[1]
    if shared:
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_kv, G, d]

    groups = group_heads(patterns)
    if len(groups) == 1:
        out = _step(q, k, v, keys, values, positions, patterns[0], offsets, (first, last))
        return out.flatten(1, 2) if shared else out
    out = torch.empty_like(q)
    for pattern, heads in groups.items():
        part = slice(heads[0], heads[-1] + 1) if heads[-1] - heads[0] + 1 == len(heads) else heads
        starts = [offsets[head] for head in heads]
        out[:, part] = _step(
            q[:, part], k[:, part], v[:, part], keys, values, positions, pattern, starts, (first, last)
        )
    return out.flatten(1, 2) if shared else out


def take_token(
    q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, state: Pair | None, positions: Tensor, rope: Pair | None,
    dtype: torch.dtype, at: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q and k of a new token, rotated, and v, after the recurrence has taken it in (`state` changes in place).

    at: the position, where the caller knows that it is the same in all sequences: then no tensor has to be looked up.
    """
    if state is not None and logit is not None:
        take = torch.sigmoid(logit.to(state[0].dtype).neg())
        for held, new in zip(state, (k, v)):
            held.lerp_(new.to(held.dtype), take)
        k, v = state
    q, k = q.to(dtype), k.to(dtype)
    if rope is not None:
        cos, sin = ((table[positions].unsqueeze(1) if at is None else table[at]).to(dtype) for table in rope)
        # Together: a step of one sequence mostly waits for operations to be started.
        q, k = rotate(torch.cat((q, k), dim=1), cos, sin).split((q.shape[1], k.shape[1]), dim=1)
    return q, k, v


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    pattern: HeadPattern,
    starts: list[int],
    span: tuple[int, int],
) -> Tensor:
    """Writes the token and attends, for the heads of one pattern; the result has q's shape.

    q [B, H', G, d], or [B, H', d] without sharing; k, v [B, H', d]; starts: first slot of each of these heads; span:
    smallest and largest position in the batch.
    """
    dilation, window, sinks = pattern.dilation, pattern.window, pattern.sinks
    # A token without a place among the sinks or in the dilated area is written to its ring slot once more instead:
    # the same value, and no data-dependent shape.
    ring = ring_slot(positions, window, sinks)
    targets = [ring]
    if span[0] < sinks:
        slot, kept = sink_slot(positions, sinks)
        targets.append(torch.where(kept, slot, ring))
    if dilation >= 1:
        slot, kept = dilated_slot(positions, dilation, window, sinks)
        targets.append(torch.where(kept, slot, ring))
    first_slot = torch.tensor(starts, device=q.device)
    rows = torch.arange(q.shape[0], device=q.device).unsqueeze(1)
    for target in targets:
        slot = target.unsqueeze(1) + first_slot
        keys[rows, slot] = k
        values[rows, slot] = v

    used = sinks + window + 1 + dilated_in_use(span[1], dilation, window, sinks)
    seen_keys, seen_values = (_head_view(cache, starts, used).to(q.dtype) for cache in (keys, values))
    across = q.transpose(-1, -2) if q.dim() == 4 else q.unsqueeze(-1)
    scores = torch.matmul(seen_keys, across).transpose(-1, -2)  # [B, H', G, used]
    steady = span[0] == span[1] and span[0] >= sinks + window
    if not steady:
        scores = scores.masked_fill(~_visible(pattern, positions, used)[:, None, None], float("-inf"))
    mixed = torch.matmul(torch.softmax(scores, dim=-1), seen_values)
    return mixed if q.dim() == 4 else mixed.squeeze(2)


def _head_view(cache: Tensor, starts: list[int], used: int) -> Tensor:
    """[B, H', used, d]: the first `used` slots of each head; a view when the heads lie at equal distances."""
    batch, _, d_head = cache.shape
    steps = {after - before for before, after in pairwise(starts)}
    if len(steps) <= 1:
        step = steps.pop() if steps else used
        stride = (cache.stride(0), step * cache.stride(1), cache.stride(1), cache.stride(2))
        offset = cache.storage_offset() + starts[0] * cache.stride(1)
        return cache.as_strided((batch, len(starts), used, d_head), stride, offset)
    return torch.stack([cache[:, start : start + used] for start in starts], dim=1)


def _visible(pattern: HeadPattern, positions: Tensor, used: int) -> Tensor:
    """[B, used] bool: which slots hold a token that the step at `positions` sees."""
    dilation, window, sinks = pattern.dilation, pattern.window, pattern.sinks
    now = positions.unsqueeze(1)
    slots = torch.arange(used, device=positions.device)
    in_sinks = slots[:sinks] <= now
    # A ring entry may hold a sink's copy, or nothing yet (a negative position): both are below `sinks`.
    in_ring = ring_position(slots[: window + 1], now, window) >= sinks
    in_dilated = slots[: used - sinks - window - 1] < dilated_in_use(now, dilation, window, sinks)
    return torch.cat((in_sinks, in_ring, in_dilated), dim=1)
