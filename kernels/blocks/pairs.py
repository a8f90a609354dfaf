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
        self.blocks, self.group = blocks, group
        self.shape = past.shape
        ids, order = torch.sort(past.flatten(), stable=True)
        absent = int((ids == ABSENT).sum())  # these are lowest, and cut off
        ids, order = ids[absent:], order[absent:]
        self.count = ids.shape[0]
        self.query = order // max(1, past.shape[1])
        found, counts = torch.unique_consecutive(ids, return_counts=True)
        self.found: list[int] = found.tolist()  # blocks that were chosen
        self.rows_of: list[int] = [count * group for count in counts.tolist()]  # of each: its pairs' rows
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

    def _of_blocks(self, x: Tensor) -> list[Tensor]:
        """Keys or values [..., S, d] of each block that was chosen, [..., block, d]."""
        members = x[..., self.blocks.stride - 1 :: self.blocks.stride, :]
        size = self.blocks.block
        every = members[..., : members.shape[-2] // size * size, :].unflatten(-2, (-1, size)).unbind(-3)
        return [every[block] for block in self.found]

    def attend(self, rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of rows [count * G, d] to the block of their pair: out [count * G, d], log-sum-exp [count * G]."""
        members = (self._of_blocks(x[None, None]) for x in (keys, values))
        parts = zip(rows[None, None].split(self.rows_of, dim=2), *members, strict=True)
        outs, sums = zip(*(attend(*part) for part in parts), strict=True)
        return torch.cat(outs, dim=2)[0, 0], torch.cat(sums, dim=2)[0, 0]

    def products(self, rows: Tensor, keys: Tensor) -> Tensor:
        """rows [count * G, d] times the keys [S, d] of each pair's block: [count * G, block]."""
        out = rows.new_empty(rows.shape[0], self.blocks.block)
        for a, b, target in zip(rows.split(self.rows_of), self._of_blocks(keys), out.split(self.rows_of), strict=True):
            torch.mm(a, b.T, out=target)
        return out

    def mix(self, weights: Tensor, values: Tensor) -> Tensor:
        """weights [count * G, block] times the values [S, d] of each pair's block: [count * G, d]."""
        out = weights.new_empty(weights.shape[0], values.shape[1])
        parts = zip(weights.split(self.rows_of), self._of_blocks(values), out.split(self.rows_of), strict=True)
        for a, b, target in parts:
            torch.mm(a, b, out=target)
        return out

    def add_to_keys(self, total: Tensor, weights: Tensor, rows: Tensor) -> None:
        """Adds weights^T rows, weights [count * G, block], rows [count * G, d], to the keys' gradient [S, d]."""
        parts = zip(weights.split(self.rows_of), rows.split(self.rows_of), self._of_blocks(total), strict=True)
        for a, b, target in parts:
            target += a.T @ b

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


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention of q [N, G, n, d] to k, v [N, 1 or G, m, d]: out [N, G, n, d] and log-sum-exp [N, G, n].

    causal: n = m, and queries see the keys up to their own; else all.
    """
    if q.device.type == "cpu":
        # What F.scaled_dot_product_attention runs on a CPU; it also returns the log-sum-exp, which the other hides.
        if q.shape[1] > k.shape[1]:
            k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        t = torch.arange(q.shape[2], device=q.device)
        scores.masked_fill_(t > t[:, None], float("-inf"))
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp_() @ v, lse
