"""One decoding step as it is defined: loops over sequences and heads, asking the predicate about each token."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import HeadPattern
from ratplus.kernels.decode.layout import dilated_slot, ring_slot, sink_slot
from ratplus.kernels.scan.reference import rotate

Pair = tuple[Tensor, Tensor]


def sees(pattern: HeadPattern, position: int, key: int) -> bool:
    """Whether the query at `position` sees `key`."""
    dilated = pattern.dilation >= 1 and (key + 1) % pattern.dilation == 0
    return key <= position and (key < pattern.sinks or position - key <= pattern.window or dilated)


def slots_of(pattern: HeadPattern, token: int) -> list[int]:
    """Every slot that `token` is written to."""
    slots = [ring_slot(token, pattern.window, pattern.sinks)]
    for slot, kept in (
        sink_slot(token, pattern.sinks),
        dilated_slot(token, pattern.dilation, pattern.window, pattern.sinks),
    ):
        if kept:
            slots.append(slot)
    return slots


def read_slot(pattern: HeadPattern, position: int, key: int) -> int:
    """The slot in which the step at `position` finds the visible token `key`."""
    if key < pattern.sinks:
        return sink_slot(key, pattern.sinks)[0]
    if position - key <= pattern.window:
        return ring_slot(key, pattern.window, pattern.sinks)
    return dilated_slot(key, pattern.dilation, pattern.window, pattern.sinks)[0]


def decode_attention_reference(
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
    batch, heads, d_head = q.shape
    group = heads // k.shape[1]
    if state is not None and logit is not None:
        take = torch.sigmoid(-logit.to(state[0].dtype))
        keep = torch.sigmoid(logit.to(state[0].dtype))
        for held, new in zip(state, (k, v)):
            held.copy_(keep * held + take * new.to(held.dtype))
        k, v = state
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if rope is not None:
        cos, sin = (table[positions].unsqueeze(1).to(dtype) for table in rope)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q = q.to(keys.dtype).to(dtype)
    out = torch.empty(batch, heads, d_head, dtype=dtype, device=q.device)
    for b in range(batch):
        position = int(positions[b])
        for h, pattern in enumerate(patterns):
            for slot in slots_of(pattern, position):
                keys[b, offsets[h] + slot] = k[b, h].to(keys.dtype)
                values[b, offsets[h] + slot] = v[b, h].to(values.dtype)
            seen = [key for key in range(position + 1) if sees(pattern, position, key)]
            slots = [offsets[h] + read_slot(pattern, position, key) for key in seen]
            for head in range(h * group, (h + 1) * group):
                weights = torch.softmax(keys[b, slots].to(dtype) @ q[b, head] * d_head**-0.5, dim=0)
                out[b, head] = weights @ values[b, slots].to(dtype)
    return out
