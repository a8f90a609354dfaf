"""SnapKV: the prompt is held whole until generation begins; then each head keeps what the prompt's end looked at.

Before, this is a dense cache that also keeps the last queries. At the first step it is cut: the entries that are kept
move to a smaller dense cache, in their order, and tokens that follow are appended to them. Keys keep their rotation, so
a sequence counts its positions on; only its place in the cache is nearer to the front, by what was dropped.
Source: SnapKV, arXiv 2404.14469; `Pattern.visible_from` is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.model.cache_chunk import Chunk, Room, keep_state, put
from ratplus.model.cache_layer import LayerCache
from ratplus.model.head_parts import HeadPart
from ratplus.model.rope import rotate
from ratplus.pattern import Pattern


@dataclass
class SnapLayer:
    """One layer's cache for key heads with the same SnapKV pattern; see `AnyLayer`."""

    pattern: Pattern
    room: Room
    heads: int  # of keys
    group: int  # query heads of each
    state: tuple[Tensor, Tensor] | None
    positions: Tensor
    entries: LayerCache  # dense: the prompt, and once it is cut what is kept and all that follows
    queries: Tensor | None  # [B, H, observe, d_head]: those of the last tokens, as a ring; None once the prompt is cut
    dropped: list[int] = field(default_factory=list)  # entries of each sequence; empty before the cut
    dropped_B: Tensor | None = None  # the same on the device, int64 [B]

    @property
    def capacity(self) -> int:
        """Entries that a head keeps of a prompt."""
        assert self.pattern.snap is not None
        return self.pattern.snap

    @classmethod
    def empty(cls, room: Room, part: HeadPart, group: int) -> SnapLayer:
        heads = len(part.heads)
        queries = cls._no_queries(room, heads * group, part.pattern)
        return cls(part.pattern, room, heads, group, room.state(heads), room.positions, _dense(room, heads), queries)

    @staticmethod
    def _no_queries(room: Room, heads: int, pattern: Pattern) -> Tensor:
        return room.zeros(heads, pattern.observe, room.d_head)

    def buffers(self) -> dict[str, list[Tensor]]:
        queries = [] if self.queries is None else [self.queries]
        return {"kv": [self.entries.keys, self.entries.values], "queries": queries, "state": [*(self.state or ())]}

    def branch(self, index: Tensor, positions: Tensor) -> SnapLayer:
        room = replace(self.room, batch=len(index), positions=positions)
        state = None if self.state is None else (self.state[0][index], self.state[1][index])
        own = positions if self.dropped_B is None else self.entries.positions[index]
        return replace(
            self, room=room, state=state, positions=positions, entries=self.entries.branch(index, own),
            queries=None if self.queries is None else self.queries[index],
            dropped=[self.dropped[i] for i in index.tolist()] if self.dropped else [],
            dropped_B=None if self.dropped_B is None else self.dropped_B[index],
        )  # fmt: skip

    def rewind(self, length: int, reopened: bool) -> None:
        """To a token after the prompt, or to the beginning: the cache allows no other."""
        if not reopened:
            self._place()
            self.entries.rewind(length, False)
            return
        assert length == 0
        if self.dropped_B is not None:
            self.entries, self.dropped, self.dropped_B = _dense(self.room, self.heads), [], None
        self.queries = self._no_queries(self.room, self.heads * self.group, self.pattern)

    # ---- prompts, and chunks after them ---------------------------------------------------------------------------

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        if self.queries is not None:
            self._remember(q, chunk)
        return self.entries.attend_chunk(q, k, v, self._placed(chunk))

    def store_chunk(self, k: Tensor, v: Tensor, chunk: Chunk, final: tuple[Tensor, Tensor] | None) -> None:
        self.entries.store_chunk(k, v, self._placed(chunk), None)
        keep_state(self.state, final)

    def _placed(self, chunk: Chunk) -> Chunk:
        """The chunk as the sequences' places in the cache have it."""
        if self.dropped_B is None:
            return chunk
        self._place()
        return chunk.moved(self.dropped)

    def _place(self) -> None:
        """Count the sequences' places in the cache from their positions, which they are where nothing was dropped."""
        if self.dropped_B is None:
            return
        torch.sub(self.positions, self.dropped_B, out=self.entries.positions)

    def _remember(self, q: Tensor, chunk: Chunk) -> None:
        """Keep the queries of the last tokens: slot s has the last token t with t % observe == s."""
        assert self.queries is not None
        token = self._tokens_of_queries(chunk.ends_B(self.positions)[:, None])
        self.queries.copy_(put(self.queries, q, chunk.places(token, self.positions)))

    def _tokens_of_queries(self, held: Tensor) -> Tensor:
        """int64 [B, observe]: the token of each slot, where sequences hold so many, int64 [B, 1]; negative: none."""
        ring, last = self.pattern.observe, held - 1
        return last - (last - torch.arange(ring, device=held.device)) % ring

    # ---- the cut -----------------------------------------------------------------------------------------------

    def begin_decoding(self, lengths: list[int]) -> None:
        if self.queries is None:
            return
        kept = [min(n, self.capacity) for n in lengths]
        longest, most = max(lengths), max(kept)
        if longest == most:  # nothing is dropped
            self.queries = None
            return
        self.dropped = [n - stay for n, stay in zip(lengths, kept)]
        entry = self._kept_entries(longest, most)  # [B, H_kv, most], lowest first
        rows = max(stay + self.room.max_len - n for stay, n in zip(kept, lengths))
        self.dropped_B = (self.positions - self.capacity).clamp_(min=0)
        smaller = _dense(replace(self.room, max_len=rows, positions=self.positions - self.dropped_B), self.heads)
        for flat, old in ((smaller.keys, self.entries.keys), (smaller.values, self.entries.values)):
            # Of a dense head the slots are [the last token | all tokens]: ring, then dilated area.
            old = old.unflatten(1, (self.heads, -1))[:, :, 1:]
            moved = old.gather(2, entry[..., None].expand(-1, -1, -1, old.shape[3]))
            flat.unflatten(1, (self.heads, -1))[:, :, 1 : 1 + most] = moved
        self.entries, self.queries = smaller, None

    def _kept_entries(self, longest: int, most: int) -> Tensor:
        """Positions int64 [B, H_kv, most] of what each head keeps, in order; behind a sequence's own count any."""
        keys = self.entries.keys.unflatten(1, (self.heads, -1))[:, :, 1 : 1 + longest]
        held = self.positions[:, None]
        position = torch.arange(longest, device=keys.device)
        first = held - self.pattern.observe
        score = self._scores(keys, held, position, first)
        # What is kept in any case, and all of a prompt that is short enough; what is not there comes last.
        forced = (position >= first) | (position < self.pattern.sinks) | (held <= self.capacity)
        score = score.masked_fill(forced[:, None], torch.inf).masked_fill((position >= held)[:, None], -torch.inf)
        # Stable: equal scores, which max pooling makes the rule, go to the lower position.
        best = score.sort(dim=-1, descending=True, stable=True).indices[..., :most]
        there = best < held[..., None]
        return best.where(there, longest).sort(dim=-1).values.clamp(max=longest - 1)

    def _scores(self, keys: Tensor, held: Tensor, position: Tensor, first: Tensor) -> Tensor:
        """Pooled attention float32 [B, H_kv, longest] that the last queries give to the entries before them."""
        assert self.queries is not None
        width = keys.shape[-1]
        wide = torch.promote_types(keys.dtype, torch.float32)
        token = self._tokens_of_queries(held)
        queries = self.queries.to(wide).unflatten(1, (self.heads, -1))
        total = keys.new_zeros(*keys.shape[:3], dtype=wide)
        hidden = (position > token[..., None])[:, None]
        for one in queries.unbind(dim=2):  # heads that share keys, one after the other
            logits = (one @ keys.to(wide).transpose(-1, -2)) * width**-0.5
            total += logits.masked_fill(hidden, -torch.inf).softmax(dim=-1).nan_to_num(0.0).sum(dim=2)
        total /= queries.shape[2]
        kernel, half = self.pattern.kernel, self.pattern.kernel // 2
        outside = (position >= first)[:, None]
        if self.pattern.pool == "avg":
            return F.avg_pool1d(total.masked_fill(outside, 0.0), kernel, stride=1, padding=half)
        return F.max_pool1d(total.masked_fill(outside, -torch.inf), kernel, stride=1, padding=half)

    # ---- steps -------------------------------------------------------------------------------------------------

    def step(self, q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """As of `AnyLayer`. Recurrence and rotation count positions, the dense step below places in the cache."""
        if logit is not None and self.state is not None:
            wide = logit.to(self.state[0].dtype)
            keep, take = torch.sigmoid(wide), torch.sigmoid(-wide)
            for state, new in zip(self.state, (k, v)):
                state.copy_(keep * state + take * new)
            k, v = self.state
        if rope is not None:
            cos, sin = (table[self.positions][:, None] for table in rope)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self._place()
        dtype = self.entries.keys.dtype
        return self.entries.step(q.to(dtype), k.to(dtype), v.to(dtype), None, None).to(q.dtype)


def _dense(room: Room, heads: int) -> LayerCache:
    """A cache of all entries, whose recurrent state is kept elsewhere."""
    return LayerCache.empty(replace(room, recurrence=False), (Pattern(),) * heads)
