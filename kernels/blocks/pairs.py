"""The past blocks that queries chose, block by block: every block's keys meet the queries that chose it, no others.

A *pair* is a query and one past block of its choice. Pairs are sorted by block, so that a block's queries are rows side
by side, and its products are two matrix products without a mask: a past block is complete and wholly visible. Blocks
that about equally many queries chose are computed together, with rows to fill up those that fewer did.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.blocks.selection import ABSENT
from ratplus.kernels.blocks.settings import Blocks

PAIRS_AT_ONCE = 1 << 16  # rows of queries are joined up to this: what is gathered of them should stay in a cache


class Pairs:
    """The pairs of a few (batch, key head) rows.

    past: int32 [N, T, slots], past blocks that each query chose. group: query heads that share the keys: a pair has as
    many rows of queries.
    """

    def __init__(self, past: Tensor, blocks: Blocks, group: int):
        self.blocks, self.group = blocks, group
        self.shape = count, _, slots = past.shape
        self.there = past != ABSENT
        self.count = int(self.there.sum())
        if not self.count:
            return
        self.reach = int(past.max()) + 1
        # Row and block are one number: PyTorch sorts many whole numbers by their digits, fewer by comparing them.
        base = torch.arange(0, count * self.reach, self.reach, dtype=past.dtype, device=past.device)
        ids = torch.where(self.there, past + base[:, None, None], count * self.reach).flatten()
        ids, order = torch.sort(ids, stable=True)
        ids, order = ids[: self.count], order[: self.count]
        found, counts = torch.unique_consecutive(ids, return_counts=True)
        ascending = torch.argsort(counts)
        self.found = found[ascending]  # the blocks, those of fewest pairs first
        self.parts = _parts(counts[ascending])
        widths = torch.cat([counts.new_full((many,), width) for many, width in self.parts])
        first = torch.empty_like(counts)  # place of each block's first pair
        first[ascending] = widths.cumsum(0) - widths
        shift = first - (counts.cumsum(0) - counts)
        places = torch.arange(self.count, device=past.device) + shift.repeat_interleave(counts)
        total = sum(many * width for many, width in self.parts)
        self.query = order.new_zeros(total)  # of each place: row * T + its query
        self.query[places] = order // slots
        filled = torch.zeros(total, dtype=torch.bool, device=past.device)
        filled[places] = True
        self.unused = (~filled).nonzero().squeeze(1)  # places without a pair
        # The other way round: the place of the pair in a query's slot; any where there is none.
        self.place = torch.zeros(past.numel(), dtype=torch.long, device=past.device)
        self.place[order] = places

    def rows(self, x: Tensor) -> Tensor:
        """The rows of every place's queries: x [N, G, T, d] -> [places * G, d]."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.query).flatten(0, 1)

    def _of_blocks(self, x: Tensor) -> list[Tensor]:
        """Keys or values [N, S, d] of the blocks that were chosen: for each part [blocks, block, d]."""
        members = self._members(x)
        place = self.found // self.reach * members.shape[1] + self.found % self.reach
        return list(members.flatten(0, 1).index_select(0, place).split([many for many, _ in self.parts]))

    def _members(self, x: Tensor) -> Tensor:
        """[N, S, d] -> [N, complete blocks, block, d], a view."""
        members, size = x[:, self.blocks.stride - 1 :: self.blocks.stride], self.blocks.block
        return members[:, : members.shape[1] // size * size].unflatten(1, (-1, size))

    def _split(self, rows: Tensor) -> list[Tensor]:
        """[places * G, m] -> for each part [blocks, width * G, m], views."""
        parts = rows.split([many * width * self.group for many, width in self.parts])
        return [part.view(many, -1, rows.shape[1]) for part, (many, _) in zip(parts, self.parts, strict=True)]

    def attend(self, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of rows [places * G, d] to their pair's block: out [places * G, d], log-sum-exp [places * G].

        Overwrites the rows by `out`: a part's result is small enough to be copied from the processor's cache.
        """
        sums = []
        for a, b, c in zip(self._split(rows), self._of_blocks(keys), self._of_blocks(values), strict=True):
            out, lse = attend(a[:, None], b[:, None], c[:, None])
            a.copy_(out.squeeze(1))
            sums.append(lse.flatten())
        return rows, torch.cat(sums)

    def products(self, rows: Tensor, keys: Tensor) -> Tensor:
        """rows [places * G, d] times the keys [N, S, d] of each pair's block: [places * G, block]."""
        out = rows.new_empty(rows.shape[0], self.blocks.block)
        for a, b, target in zip(self._split(rows), self._of_blocks(keys), self._split(out), strict=True):
            torch.bmm(a, b.transpose(1, 2), out=target)
        return out

    def mix(self, weights: Tensor, values: Tensor) -> Tensor:
        """weights [places * G, block] times the values [N, S, d] of each pair's block: [places * G, d]."""
        out = weights.new_empty(weights.shape[0], values.shape[2])
        for a, b, target in zip(self._split(weights), self._of_blocks(values), self._split(out), strict=True):
            torch.bmm(a, b, out=target)
        return out

    def forget_unused(self, weights: Tensor) -> Tensor:
        """Sets the rows of weights [places * G, block] that stand for no pair to 0, in place."""
        weights.view(-1, self.group, weights.shape[1]).index_fill_(0, self.unused, 0.0)
        return weights

    def add_to_keys(self, total: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Adds weights^T rows, weights [places * G, block], rows [places * G, d], to the keys' gradient [N, S, d]."""
        parts = zip(self._split(weights), self._split(rows), strict=True)
        found = torch.cat([torch.bmm(a.transpose(1, 2), b) for a, b in parts])
        self._members(total)[self.found // self.reach, self.found % self.reach] += found  # each block stands there once

    def by_query(self, x: Tensor) -> Tensor:
        """x [places * G] as [N, G, T, slots], -inf where a query has no pair."""
        held = x.view(-1, self.group)[self.place].view(*self.shape, self.group)
        return held.masked_fill_(~self.there.unsqueeze(3), float("-inf")).permute(0, 3, 1, 2)

    def add_to_queries(self, total: Tensor, x: Tensor, weights: Tensor | None = None) -> None:
        """Adds x [places * G, d], times weights [N, G, T, slots] (None: 1), to the queries [N, G, T, d]."""
        x, place = x.view(-1, self.group, x.shape[1]), self.place.view(-1, self.shape[2])
        for g in range(self.group):
            weight = self.there.to(x.dtype) if weights is None else weights[:, g]
            bags = F.embedding_bag(
                place, x[:, g].contiguous(), mode="sum", per_sample_weights=weight.reshape(place.shape)
            )
            total[:, g] += bags.unflatten(0, self.shape[:2])


def pairs_of_rows(past: Tensor, blocks: Blocks, group: int) -> Iterator[tuple[slice, Pairs]]:
    """The pairs of a few rows of past int32 [N, T, slots] at a time, and which rows these are."""
    count = past.shape[0]
    several = max(1, PAIRS_AT_ONCE // max(1, past[0].numel() * group)) if count else 1
    for first in range(0, count, several):
        rows = slice(first, first + several)
        yield rows, Pairs(past[rows], blocks, group)


def _parts(counts: Tensor) -> list[tuple[int, int]]:
    """(blocks, width) of the parts that blocks with `counts` pairs, ascending, are computed in: width pairs a block.

    A block takes at most a tenth more than it needs, or a few pairs, which cost less than a part of their own.
    """
    values, repeats = (x.tolist() for x in torch.unique_consecutive(counts, return_counts=True))
    parts: list[tuple[int, int]] = []
    for value, many in zip(reversed(values), reversed(repeats)):
        if parts and value >= 0.9 * parts[-1][1] - 8:
            parts[-1] = parts[-1][0] + many, parts[-1][1]
        else:
            parts.append((many, value))
    return parts[::-1]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention of q [N, G, n, d] to k, v [N, G, m, d]: out [N, G, n, d] and log-sum-exp [N, G, n].

    causal: n = m, and queries see the keys up to their own; else all.
    """
    if q.device.type == "cpu":
        # What F.scaled_dot_product_attention runs on a CPU; it also returns the log-sum-exp, which the other hides.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return attend_by_products(q, k, v, causal)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """As `attend`, of any device: all scores at once."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        t = torch.arange(q.shape[2], device=q.device)
        scores.masked_fill_(t > t[:, None], float("-inf"))
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp_() @ v, lse
