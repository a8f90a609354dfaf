"""One layer of the compact KV cache: which slot holds which token, what a prompt's chunk writes, and what it sees.

Slots of one head lie side by side, [sinks | ring of window + 1 | dilated], heads one after the other, so that heads of
different patterns waste nothing. A token enters the ring and, if its pattern keeps it, the dilated area at once;
what a query may see is counted from its position, so nothing is ever moved on eviction. Heads are those of keys and
values: query heads that share them (grouped-query attention) share their cache.

Nothing here makes the host wait for the device. What is written is decided from lengths that the host knows: sequences
at one position write slices; sequences at different positions or with padding write every slot of a range, which gets
either its new token or what it held before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import decode_attention, dilated_attention
from ratplus.kernels.attention.patterns import pattern_tensors
from ratplus.kernels.decode.layout import dilated_slot, ring_slot, slot_count
from ratplus.model.cache_chunk import Chunk, Room, keep_state, put
from ratplus.model.kernel_pattern import kernel_pattern
from ratplus.pattern import Pattern

# Queries per block in chunked prefill: bounds the mask, whatever the chunk's length.
_QUERY_BLOCK = 512


@dataclass
class HeadGroup:
    """Key heads of one layer that share a pattern.

    Attributes:
        heads: their indices; a slice if they stand side by side, which most do, so that their slots are a view.
        starts: int64 [heads], where the slots of each begin in the flat cache; `first` is the first of these.
        slots: of each head.
    """

    pattern: Pattern
    heads: slice | Tensor
    starts: Tensor
    first: int
    slots: int

    @classmethod
    def of(cls, pattern: Pattern, heads: list[int], offsets: list[int], slots: int, device) -> HeadGroup:
        together = heads == list(range(heads[0], heads[-1] + 1))
        index = slice(heads[0], heads[-1] + 1) if together else torch.tensor(heads, device=device)
        if together:  # no copy from the host, which SnapKV's cut would wait for
            starts = torch.arange(offsets[heads[0]], offsets[heads[0]] + len(heads) * slots, slots, device=device)
        else:
            starts = torch.tensor([offsets[head] for head in heads], device=device)
        return cls(pattern, index, starts, offsets[heads[0]], slots)

    def read(self, flat: Tensor, low: int, high: int) -> Tensor:
        """Slots low..high of each head [B, heads, high - low, d] of a layer's keys or values."""
        if isinstance(self.heads, slice):
            return self._view(flat)[:, :, low:high]
        return flat[:, self._slots(flat, low, high)]

    def write(self, flat: Tensor, low: int, new: Tensor) -> None:
        """Put new [B, heads, n, d] into slots low..low + n of each head."""
        high = low + new.shape[2]
        if isinstance(self.heads, slice):
            self._view(flat)[:, :, low:high] = new
        else:
            flat[:, self._slots(flat, low, high)] = new.to(flat.dtype)

    def _view(self, flat: Tensor) -> Tensor:
        count = self.starts.shape[0]
        return flat[:, self.first : self.first + count * self.slots].unflatten(1, (count, self.slots))

    def _slots(self, flat: Tensor, low: int, high: int) -> Tensor:
        return self.starts[:, None] + torch.arange(low, high, device=flat.device)


@dataclass
class LayerCache:
    """One layer's cache, as `decode_attention` takes it."""

    keys: Tensor  # [B, slots of all heads, d_head], rotated
    values: Tensor  # as keys
    state: tuple[Tensor, Tensor] | None  # un-rotated recurrent (k, v), float32 [B, H_kv, d_head]
    positions: Tensor  # int64 [B], tokens held so far; shared by all layers
    setting: tuple  # (dilation, window, sinks) for prefill: ints if all heads agree, else int32 [H_kv]
    # The same for a decoding step, always as int32 [H_kv]. The layer owns them, because a captured graph reads them
    # where they lie for as long as this cache lives.
    step_setting: tuple[Tensor, Tensor, Tensor]
    offsets: Tensor  # int64 [H_kv + 1], first slot of each head
    groups: list[HeadGroup]

    @classmethod
    def empty(cls, room: Room, row: tuple[Pattern, ...]) -> LayerCache:
        """Slots for key heads of these patterns, which select nothing."""
        row, device = tuple(_bounded(p, room.max_len) for p in row), room.device
        counts = [_slots(p, room.max_len) for p in row]
        offsets = [0, *accumulate(counts)]
        groups = [
            HeadGroup.of(
                pattern, [h for h, p in enumerate(row) if p == pattern], offsets, _slots(pattern, room.max_len), device
            )
            for pattern in dict.fromkeys(row)
        ]
        shape = (room.batch, offsets[-1], room.d_head)
        setting = kernel_pattern(row, device)
        # Tensors of its own, not those that `kernel_pattern` shares and may drop.
        dilations, windows, sinks = pattern_tensors(*setting, len(row), device)
        return cls(
            keys=torch.zeros(shape, device=device, dtype=room.dtype),
            values=torch.zeros(shape, device=device, dtype=room.dtype),
            state=room.state(len(row)), positions=room.positions, setting=setting,
            step_setting=(dilations.clone(), windows.clone(), sinks.clone()),
            offsets=_first_slots(offsets, counts, device), groups=groups,
        )  # fmt: skip

    # ---- as all layers' caches have it (`ratplus.model.cache`) ----------------------------------------------------

    def buffers(self) -> dict[str, list[Tensor]]:
        """What is held, by what it is: keys and values ("kv"), "state"."""
        return {"kv": [self.keys, self.values], "state": [*(self.state or ())]}

    def branch(self, index: Tensor, positions: Tensor) -> LayerCache:
        """A copy of the rows `index` of the batch, which stand at `positions`."""
        state = None if self.state is None else (self.state[0][index], self.state[1][index])
        return replace(self, keys=self.keys[index], values=self.values[index], state=state, positions=positions)

    def begin_decoding(self, lengths: list[int]) -> None:
        """Nothing changes where a prompt ends."""

    def rewind(self, length: int, reopened: bool) -> None:
        """The slots keep what they hold; only the newest token's slot of a dense head gets that token again.

        A window's tokens that newer ones have overwritten are gone.
        """
        for group in self.groups:
            if group.pattern.dense:
                newest = self.positions[:, None, None, None]  # its slot among all tokens', which begin at slot 1
                for flat in (self.keys, self.values):
                    held = group.read(flat, 0, group.slots)
                    index = newest.expand(-1, held.shape[1], 1, held.shape[3])
                    group.write(flat, 0, held.gather(2, index))

    def step(self, q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """One token a sequence: q [B, H, d], k, v and gate logit [B, H_kv, d], un-rotated; returns [B, H, d]."""
        return decode_attention(
            q, k, v, logit, self.keys, self.values, self.state, self.positions, *self.step_setting, self.offsets, rope
        )

    # ---- what a chunk sees -------------------------------------------------------------------------------------

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        """Attention [B,H,T,d] of a chunk over what is stored and over itself; k, v [B,H_kv,T,d]; q and k rotated."""
        if max(chunk.held) == 0:
            return dilated_attention(q, k, v, *self.setting)
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_kv, queries of each, T, d]
        out = torch.empty_like(q)
        for group in self.groups:
            out[:, group.heads] = self._attend_group(group, q, k, v, chunk)
        return out.flatten(1, 2)

    def _attend_group(self, group: HeadGroup, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        p, shared = group.pattern, q.shape[2]
        stored_BS, holds_BS = self._stored_positions(p, max(chunk.held))
        stored = stored_BS.shape[1]
        key = torch.cat((group.read(self.keys, 0, stored).to(k.dtype), k[:, group.heads]), dim=2)
        value = torch.cat((group.read(self.values, 0, stored).to(v.dtype), v[:, group.heads]), dim=2)
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

    def _stored_positions(self, p: Pattern, longest: int) -> tuple[Tensor, Tensor]:
        """Token position of each slot [B, S] and whether it counts (each stored token exactly once).

        Only the part of the dilated area that the longest sequence has filled.
        """
        held = self.positions[:, None]
        sinks, last, kept = _tokens_of_slots(p, held, 0, _dilated_before(p, longest))
        counts = sinks < held, last >= p.sinks, kept < held - (p.window + 1)
        return torch.cat((sinks, last, kept), dim=1), torch.cat(counts, dim=1)

    # ---- what a chunk leaves behind ----------------------------------------------------------------------------

    def store_chunk(self, k: Tensor, v: Tensor, chunk: Chunk, final) -> None:
        """Write what the patterns keep of a chunk [B,H_kv,T,d] (k rotated), and the recurrent state after it."""
        for group in self.groups:
            if chunk.start is not None:
                for slot, tokens in _slices(group.pattern, chunk.start, chunk.start + chunk.width):
                    for flat, new in ((self.keys, k), (self.values, v)):
                        group.write(flat, slot, new[:, group.heads, tokens])
            else:
                self._store_ragged(group, k, v, chunk)
        keep_state(self.state, final)

    def _store_ragged(self, group: HeadGroup, k: Tensor, v: Tensor, chunk: Chunk) -> None:
        """Each slot that may change gets the token that it holds after the chunk, if that token is in the chunk."""
        p = group.pattern
        low, high = _dilated_before(p, min(chunk.held)), _dilated_before(p, max(chunk.ends))
        sinks, last, kept = _tokens_of_slots(p, chunk.ends_B(self.positions)[:, None], low, high)
        for slot, token_BS in ((0, torch.cat((sinks, last), dim=1)), (p.sinks + p.window + 1 + low, kept)):
            if not token_BS.shape[1]:
                continue
            places = chunk.places(token_BS, self.positions)
            for flat, new in ((self.keys, k), (self.values, v)):
                old = group.read(flat, slot, slot + token_BS.shape[1])
                group.write(flat, slot, put(old, new[:, group.heads], places))


def _dilated_before(p: Pattern, length: int) -> int:
    """Dilated slots that a sequence of `length` tokens has filled."""
    return 0 if p.dilation is None else max(0, length // p.dilation - p.sinks // p.dilation)


def _tokens_of_slots(p: Pattern, held: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that the slots of sequences of held [B, 1] tokens hold: sinks, ring, dilated slots low..high; each [B, n].

    Where a slot is still empty, the token is not below `held` (sinks, dilated) or negative (ring).
    """
    device, batch, ring = held.device, held.shape[0], p.window + 1
    sinks = torch.arange(p.sinks, device=device).expand(batch, -1)
    last = held - 1 - (held - 1 - torch.arange(ring, device=device)) % ring
    index = torch.arange(low, high, device=device).expand(batch, -1)
    step = p.dilation or 1  # without a dilation there are no slots
    return sinks, last, (p.sinks // step + 1 + index) * step - 1


def _slices(p: Pattern, start: int, end: int) -> Iterator[tuple[int, slice]]:
    """(first slot, tokens counted from `start`): what sequences write that go from `start` to `end` tokens."""
    if start < p.sinks:
        yield start, slice(0, min(end, p.sinks) - start)
    ring = p.window + 1
    token = max(start, end - ring)
    while token < end:
        count = min(ring - token % ring, end - token)
        yield ring_slot(token, p.window, p.sinks), slice(token - start, token - start + count)
        token += count
    if p.dilation is not None:
        low = _dilated_before(p, start)
        if low < _dilated_before(p, end):
            first = (p.sinks // p.dilation + 1 + low) * p.dilation - 1
            slot, _ = dilated_slot(first, p.dilation, p.window, p.sinks)
            yield slot, slice(first - start, end - start, p.dilation)


def _bounded(pattern: Pattern, max_len: int) -> Pattern:
    """The pattern that sees the same keys of at most max_len tokens, and needs no more slots than that."""
    p = pattern.canonical
    return Pattern(p.dilation, min(p.window, max_len - 1), min(p.sinks, max_len))


def _first_slots(offsets: list[int], counts: list[int], device: torch.device) -> Tensor:
    """int64 [heads + 1]: the first slot of each head; on the device from the start where all have as many slots."""
    if len(set(counts)) == 1:
        return torch.arange(len(offsets), device=device) * counts[0]
    return torch.tensor(offsets, device=device)


def _slots(pattern: Pattern, max_len: int) -> int:
    return slot_count(pattern.dilation, pattern.window, pattern.sinks, max_len)
