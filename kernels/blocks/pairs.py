"""The past blocks that queries chose, block by block: every block's keys meet the queries that chose it, no others.

A *pair* is a query and one past block of its choice. Pairs are sorted by block, so that a block's queries are rows side
by side, and its products are two matrix products without a mask: a past block is complete and wholly visible.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.blocks.selection import ABSENT
from ratplus.kernels.blocks.settings import Blocks


class Pairs:
    """The pairs of one (batch, key head) row.

    past: int32 [T, slots], past blocks that each query chose. group: query heads that share the keys: a pair has as
    many rows of queries.
    """

    def __init__(self, past: Tensor, blocks: Blocks, group: int):
        self.block, self.group = blocks.block, group
        self.shape = past.shape
        ids, order = torch.sort(past.flatten(), stable=True)
        absent = int((ids == ABSENT).sum())  # these are lowest, and cut off
        ids, order = ids[absent:], order[absent:]
        self.count = ids.shape[0]
        self.query = order // max(1, past.shape[1])
        found, counts = torch.unique_consecutive(ids, return_counts=True)
        # Of each block that was chosen: its pairs' rows, and its keys.
        self.segments: list[tuple[slice, slice]] = []
        begin = 0
        for block, count in zip(found.tolist(), counts.tolist(), strict=True):
            keys = slice(block * blocks.span + blocks.stride - 1, (block + 1) * blocks.span, blocks.stride)
            self.segments.append((slice(begin * group, (begin + count) * group), keys))
            begin += count
        # The other way round: which pair stands in a query's slot; any where there is none.
        self.there = past != ABSENT
        place = torch.zeros(past.numel(), dtype=torch.long, device=past.device)
        place[order] = torch.arange(self.count, device=past.device)
        self.place = place.view(past.shape)

    def rows(self, x: Tensor) -> Tensor:
        """The rows of every pair's queries: x [G, T, d] -> [count * G, d]."""
        if self.group == 1:
            return x[0].index_select(0, self.query)
        return x.transpose(0, 1).index_select(0, self.query).flatten(0, 1)

    def attend(self, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of rows [count * G, d] to the block of their pair: out [count * G, d], log-sum-exp [count * G]."""
        out, lse = torch.empty_like(rows), rows.new_empty(rows.shape[0])
        for part, members in self.segments:
            out[part], lse[part] = attend(rows[part], keys[members], values[members])
        return out, lse

    def products(self, rows: Tensor, keys: Tensor) -> Tensor:
        """rows [count * G, d] times the keys [S, d] of each pair's block: [count * G, block]."""
        out = rows.new_empty(rows.shape[0], self.block)
        for part, members in self.segments:
            torch.mm(rows[part], keys[members].T, out=out[part])
        return out

    def mix(self, weights: Tensor, values: Tensor) -> Tensor:
        """weights [count * G, block] times the values [S, d] of each pair's block: [count * G, d]."""
        out = weights.new_empty(weights.shape[0], values.shape[1])
        for part, members in self.segments:
            torch.mm(weights[part], values[members], out=out[part])
        return out

    def add_to_keys(self, total: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Adds weights^T rows, weights [count * G, block], rows [count * G, d], to the keys' gradient [S, d]."""
        for part, members in self.segments:
            total[members] += weights[part].T @ rows[part]

    def by_query(self, x: Tensor) -> Tensor:
        """x [count * G] as [G, T, slots], -inf where a query has no pair."""
        held = x.view(-1, self.group)[self.place.flatten()].view(*self.shape, self.group)
        return held.masked_fill_(~self.there.unsqueeze(2), float("-inf")).permute(2, 0, 1)

    def add_to_queries(self, total: Tensor, x: Tensor, weights: Tensor | None = None) -> None:
        """Adds x [count * G, d], times weights [G, T, slots] (None: 1), to the queries [G, T, d]."""
        x = x.view(self.count, self.group, -1)
        for g in range(self.group):
            weight = self.there.to(x.dtype) if weights is None else weights[g].contiguous()
            total[g] += F.embedding_bag(self.place, x[:, g].contiguous(), mode="sum", per_sample_weights=weight)


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention without a mask, q [n, d], k, v [m, d]: out [n, d] and log-sum-exp [n]."""
    if q.device.type == "cpu":
        # What F.scaled_dot_product_attention runs on a CPU; it also returns the log-sum-exp, which the other hides.
        seen = (x[None, None] for x in (q, k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*seen)
        return out[0, 0], lse.flatten()
    scores = (q * q.shape[1] ** -0.5) @ k.T
    lse = scores.logsumexp(dim=1)
    return (scores - lse[:, None]).exp_() @ v, lse
