"""The compact KV cache: per head I sinks, a ring of the last tokens, and the dilated keys; plus the recurrent state.

Slots of one head lie side by side, [sinks | ring of window + 1 | dilated], heads one after the other, so that heads of
different patterns waste nothing. A token enters the ring and, if its pattern keeps it, the dilated area at once;
what a query may see is counted from its position, so nothing is ever moved on eviction. Heads are those of keys and
values: query heads that share them (grouped-query attention) share their cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.config_model import ModelConfig
from ratplus.kernels.decode.layout import dilated_slot, ring_slot, slot_count
from ratplus.pattern import Pattern, PatternMap

# Queries per block in chunked prefill: bounds the mask, whatever the chunk's length.
_QUERY_BLOCK = 512


@dataclass
class HeadGroup:
    """Key heads of one layer that share a pattern: their indices, and where their slots begin in the flat cache."""

    pattern: Pattern
    heads: Tensor
    starts: Tensor
    slots: int


@dataclass
class LayerCache:
    """One layer's cache, as `decode_attention` takes it."""

    keys: Tensor  # [B, slots of all heads, d_head], rotated
    values: Tensor  # as keys
    state: tuple[Tensor, Tensor] | None  # un-rotated recurrent (k, v), float32 [B, H_kv, d_head]
    positions: Tensor  # int64 [B], tokens held so far; shared by all layers
    dilation: int | Tensor | None
    window: int | Tensor
    sinks: int | Tensor
    offsets: Tensor  # int64 [H_kv + 1], first slot of each head
    groups: list[HeadGroup]
    max_len: int
    lengths: list[int]  # host copy of positions; shared by all layers

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention [B,H,T,d] of a chunk over what is stored and over itself; k, v [B,H_kv,T,d]; q and k rotated."""
        if max(self.lengths) == 0:
            from ratplus.kernels import dilated_attention

            return dilated_attention(q, k, v, self.dilation, self.window, self.sinks)
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_kv, queries of each, T, d]
        out = torch.empty_like(q)
        for group in self.groups:
            out[:, group.heads] = self._attend_group(group, q, k, v)
        return out.flatten(1, 2)

    def _attend_group(self, group: HeadGroup, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p, shared = group.pattern, q.shape[2]
        stored_BS, holds_BS = self._stored_positions(group)
        slots = group.starts[:, None] + torch.arange(stored_BS.shape[1], device=q.device)
        key = torch.cat((self.keys[:, slots].to(k.dtype), k[:, group.heads]), dim=2)
        value = torch.cat((self.values[:, slots].to(v.dtype), v[:, group.heads]), dim=2)
        query_BT = self.positions[:, None] + torch.arange(q.shape[3], device=q.device)
        key_BK = torch.cat((stored_BS, query_BT), dim=1)[:, None, :]
        # Padding needs no mask: it stands right of every real query of its row.
        valid_BK = torch.cat((holds_BS, torch.ones_like(query_BT, dtype=torch.bool)), dim=1)[:, None, :]
        if p.dilation is not None:
            always = (key_BK < p.sinks) | ((key_BK + 1) % p.dilation == 0)
        else:
            always = key_BK < p.sinks
        blocks = []
        length = max(1, _QUERY_BLOCK // shared)
        for first in range(0, q.shape[3], length):
            t = query_BT[:, first : first + length, None]
            mask = valid_BK & (key_BK <= t) & (always | (t - key_BK <= p.window))
            block = q[:, group.heads, :, first : first + length]
            # Queries that share keys stand one below the other.
            rows, mask = block.flatten(2, 3), mask.repeat(1, shared, 1) if shared > 1 else mask
            mixed = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask[:, None])
            blocks.append(mixed.unflatten(2, (shared, -1)))
        return torch.cat(blocks, dim=3)

    def _stored_positions(self, group: HeadGroup) -> tuple[Tensor, Tensor]:
        """Token position of each slot [B, S] and whether it counts (each stored token exactly once)."""
        p, device = group.pattern, self.keys.device
        held = self.positions[:, None]
        ring = p.window + 1
        sinks = torch.arange(p.sinks, device=device).expand(held.shape[0], -1)
        slot = torch.arange(ring, device=device)
        last = held - 1 - (held - 1 - slot) % ring
        parts = [(sinks, sinks < held), (last, last >= p.sinks)]
        if p.dilation is not None:
            # Only the part that the longest sequence has filled.
            filled = max(0, max(self.lengths) // p.dilation - p.sinks // p.dilation)
            index = torch.arange(filled, device=device).expand(held.shape[0], -1)
            kept = (p.sinks // p.dilation + 1 + index) * p.dilation - 1
            parts.append((kept, kept < held - ring))
        return torch.cat([a for a, _ in parts], dim=1), torch.cat([b for _, b in parts], dim=1)

    def store_chunk(self, k: Tensor, v: Tensor, real_BT: Tensor, final) -> None:
        """Write what the patterns keep of a chunk [B,H_kv,T,d] (k rotated), and the recurrent state after it."""
        position_BT = self.positions[:, None] + torch.arange(k.shape[2], device=k.device)
        end_B1 = self.positions[:, None] + real_BT.sum(dim=1, keepdim=True)
        for group in self.groups:
            p = group.pattern
            ring = p.window + 1
            # (which tokens, their slot) of the three areas
            writes = [
                (position_BT < p.sinks, position_BT),
                (position_BT >= end_B1 - ring, ring_slot(position_BT, p.window, p.sinks)),
            ]
            if p.dilation is not None:
                slot, kept = dilated_slot(position_BT, p.dilation, p.window, p.sinks)
                writes.append((kept, slot))
            for chosen, slot in writes:
                row, column = torch.nonzero(chosen & real_BT, as_tuple=True)
                if row.numel():
                    where = group.starts[:, None] + slot[row, column]
                    self.keys[row, where] = k[row, group.heads[:, None], column].to(self.keys.dtype)
                    self.values[row, where] = v[row, group.heads[:, None], column].to(self.values.dtype)
        if final is not None:
            for state, new in zip(self.state, final):
                state.copy_(new)


@dataclass
class KVCache:
    """Compact cache of a whole model for a batch of sequences, each at its own position."""

    patterns: PatternMap
    kv_heads: int | None  # heads that hold keys and values, a layer; None: all
    layers: list[LayerCache]
    positions: Tensor  # int64 [B] on the model's device
    lengths: list[int]  # the same on the host, so that an overrun is seen without waiting for the device
    max_len: int

    @classmethod
    def empty(cls, config: ModelConfig, patterns: PatternMap, batch: int, max_len: int, device, dtype) -> KVCache:
        from ratplus.model import kernel_pattern

        if batch < 1 or max_len < 1:
            raise ValueError(f"cache: batch={batch} and max_len={max_len} must both be ≥ 1")
        positions = torch.zeros(batch, dtype=torch.int64, device=device)
        lengths = [0] * batch
        layers = []
        for row in patterns.per_kv_head(config.kv_heads):
            row = tuple(_bounded(p, max_len) for p in row)
            counts = [_slots(p, max_len) for p in row]
            offsets = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
            groups = []
            for pattern in dict.fromkeys(row):
                heads = torch.tensor([h for h, p in enumerate(row) if p == pattern])
                groups.append(HeadGroup(pattern, heads.to(device), offsets[heads].to(device), _slots(pattern, max_len)))
            shape = (batch, int(offsets[-1]), config.d_head)
            state = None
            if config.recurrence:
                state = tuple(torch.zeros(batch, config.key_heads, config.d_head, device=device) for _ in range(2))
            dilation, window, sinks = kernel_pattern(row, torch.device(device))
            layers.append(
                LayerCache(
                    keys=torch.zeros(shape, device=device, dtype=dtype),
                    values=torch.zeros(shape, device=device, dtype=dtype),
                    state=state, positions=positions, dilation=dilation, window=window, sinks=sinks,
                    offsets=offsets.to(device), groups=groups, max_len=max_len, lengths=lengths,
                )
            )  # fmt: skip
        return cls(patterns, config.kv_heads, layers, positions, lengths, max_len)

    def check_room(self, new: list[int], width: int, batch: int) -> None:
        """Refuse a call that does not fit: another batch size, lengths outside the chunk, or an overrun."""
        if batch != len(self.lengths):
            raise ValueError(f"cache: made for {len(self.lengths)} sequences, got {batch}")
        if len(new) != batch or any(n < 0 or n > width for n in new):
            raise ValueError(f"lengths: got {new}; give {batch} numbers between 0 and the chunk's width {width}")
        for row, (held, more) in enumerate(zip(self.lengths, new)):
            if held + more > self.max_len:
                raise ValueError(
                    f"cache overrun: sequence {row} holds {held} tokens and gets {more} more, but the cache was made "
                    f"for max_len={self.max_len}; make it larger with new_cache(..., max_len=...)"
                )

    def advance(self, new: list[int]) -> None:
        """Move every sequence on by its number of new tokens."""
        self.count(new)
        if len(set(new)) == 1:
            self.positions += new[0]
        else:
            self.positions += torch.tensor(new, device=self.positions.device)

    def count(self, new: list[int]) -> None:
        """The host's half of `advance`: for a caller who sees to the positions on the device (a captured graph)."""
        for row, more in enumerate(new):
            self.lengths[row] += more

    def rewind(self, length: int = 0) -> None:
        """Every sequence stands at `length` tokens, with an empty recurrent state; the slots keep what they hold.

        At 0 the cache is as good as new. Raises ValueError if length is not between 0 and max_len.
        """
        if not 0 <= length <= self.max_len:
            raise ValueError(f"cache: cannot stand at {length} tokens; it was made for max_len={self.max_len}")
        self.lengths[:] = [length] * len(self.lengths)
        self.positions.fill_(length)
        for layer in self.layers:
            for state in layer.state or ():
                state.zero_()

    def kv_entries(self) -> list[list[list[int]]]:
        """Entries held, [layers][key heads][B]: what the next query will see besides itself at most."""
        held = self.patterns.per_kv_head(self.kv_heads)
        return [[[p.kv_entries(n) for n in self.lengths] for p in row] for row in held]

    def bytes(self) -> int:
        """Bytes that the cache occupies: keys, values and recurrent state of all layers."""
        return self.kv_bytes() + self.state_bytes()

    def kv_bytes(self) -> int:
        """Bytes of the key and value slots of all layers."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in (layer.keys, layer.values))

    def state_bytes(self) -> int:
        """Bytes of the recurrent state of all layers; 0 without a recurrence."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.state or ())


def _bounded(pattern: Pattern, max_len: int) -> Pattern:
    """The pattern that sees the same keys of at most max_len tokens, and needs no more slots than that."""
    p = pattern.canonical
    return Pattern(p.dilation, min(p.window, max_len - 1), min(p.sinks, max_len))


def _slots(pattern: Pattern, max_len: int) -> int:
    return slot_count(pattern.dilation, pattern.window, pattern.sinks, max_len)
