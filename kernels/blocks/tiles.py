"""The part of a query's keys that follows from positions, not from its choice: the static pattern and its own block.

For a tile of queries these are the *near* keys, from the beginning of the first query's own block (or window) to the
last query, and the entries of the *far list* (sinks and dilated keys, sorted) before those. A key of a past block that
the query chose is left out here: `pairs.py` reads it.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ratplus.kernels.blocks.settings import Blocks, HeadSetting

TILE = 64  # queries a tile, rounded to whole blocks where these are shorter
SCORES_LIMIT = 1 << 23  # elements of one score buffer; rows (batch x key head) are cut to stay below


class Tile:
    """Queries at positions [start, stop), near keys [near, near_stop), and the first `far` entries of the far list.

    own: whether the keys of a query's own block are among these, or read elsewhere.
    """

    def __init__(self, plan: "TilePlan", start: int, stop: int, own: bool):
        span = plan.blocks.span
        first = start - start % span if own else start
        self.start, self.stop, self.own = start, stop, own
        self.near = max(0, min(first, start - plan.setting.pattern.window))
        # A tile within one block that is read elsewhere has only earlier keys.
        self.near_stop = start if plan.setting.top and not own and (stop - 1) // span == start // span else stop
        self.far = sum(len(range(s.start, min(s.stop, max(self.near, s.start)), s.step)) for s in plan.far_slices)

    @property
    def columns(self) -> int:
        return self.near_stop - self.near + self.far

    def local(self, offset: int) -> slice:
        """The tile's queries, counted from position `offset`."""
        return slice(self.start - offset, self.stop - offset)


class TilePlan:
    """Everything about a setting and a range of positions that doesn't depend on the data.

    own_elsewhere: keys of queries' own blocks are left out, save in a first block that begins before `start`.
    """

    def __init__(
        self, setting: HeadSetting, blocks: Blocks, start: int, length: int, device: torch.device,
        own_elsewhere: bool = False,
    ):  # fmt: skip
        self.setting, self.blocks = setting, blocks
        end, pattern = start + length, setting.pattern
        self.far_slices = pattern.far_slices(end)
        positions = [torch.arange(s.start, s.stop, s.step, device=device) for s in self.far_slices]
        self.far = torch.cat(positions) if positions else torch.empty(0, dtype=torch.long, device=device)
        span = blocks.span
        size = span * max(1, TILE // span) if span <= 4 * TILE else TILE
        # Tiles begin with a block, so that with the usual settings a tile's near keys are one block.
        edges = [start, *range(start - start % size + size, end, size), end]
        own = setting.top > 0
        self.first_whole = -(-start // span) * span  # where the first block begins that begins here
        if own_elsewhere and own and start < self.first_whole < edges[1]:
            edges.insert(1, self.first_whole)
        tiles = [
            Tile(self, low, high, own and not (own_elsewhere and low >= self.first_whole))
            for low, high in pairwise(edges)
        ]
        self.tiles = [tile for tile in tiles if tile.columns]
        # Whether a past block that a query chose can hold near keys or far keys of it.
        self.overlaps = own and (pattern.dilation >= 1 or pattern.window > 0 or pattern.sinks > 0)

    def gather_far(self, x: Tensor) -> Tensor:
        """[N, S, d] -> [N, n_far, d]"""
        if not self.far_slices:
            return x[:, :0]
        return torch.cat([x[:, s] for s in self.far_slices], dim=1)

    def row_chunk(self, group: int) -> int:
        """How many (batch, key head) rows are processed together, each with `group` heads of queries."""
        widest = max(((tile.stop - tile.start) * tile.columns for tile in self.tiles), default=1)
        return max(1, SCORES_LIMIT // (widest * group))

    def hidden(self, tile: Tile, past: Tensor) -> Tensor:
        """[N or 1, rows, columns] bool: keys that a query doesn't see, or finds in a past block that it chose.

        past: int32 [N, rows, slots], the past blocks that each query chose.
        """
        span, stride, pattern = self.blocks.span, self.blocks.stride, self.setting.pattern
        device = self.far.device
        t = torch.arange(tile.start, tile.stop, device=device).unsqueeze(1)
        j = torch.arange(tile.near, tile.near_stop, device=device).unsqueeze(0)
        near = (t - j <= pattern.window) | (j < pattern.sinks)
        if pattern.dilation >= 1:
            near = near | ((j + 1) % pattern.dilation == 0)
        if self.setting.top:
            own = (j // span == t // span) & ((j + 1) % stride == 0)
            near = near | own if tile.own else near & ~own
        far = torch.ones(t.shape[0], tile.far, dtype=torch.bool, device=device)
        visible = torch.cat((near & (j <= t), far), dim=1).unsqueeze(0)
        # Without more than the own block's keys in sight nothing can be counted twice.
        alone = tile.own and tile.near >= tile.start - tile.start % span and span >= tile.stop - tile.near
        if not self.overlaps or (alone and not tile.far):
            return ~visible
        key = torch.cat((j.squeeze(0), self.far[: tile.far]))
        chosen = torch.zeros(*past.shape[:2], self.blocks.reach(tile.stop) + 1, dtype=torch.bool, device=device)
        chosen.scatter_(2, past.long() % chosen.shape[2], True)  # ABSENT, -1, is the last, which is no block
        covered = chosen[:, :, key // span]
        if stride > 1:
            covered &= (key + 1) % stride == 0
        return ~visible | covered


class TileKeys:
    """Keys (or values) of a few rows, and of each tile those that it sees."""

    def __init__(self, plan: TilePlan, x: Tensor):
        self.x, self.far = x, plan.gather_far(x)

    def seen(self, tile: Tile) -> Tensor:
        """[N, columns, d]"""
        near = self.x[:, tile.near : tile.near_stop]
        return torch.cat((near, self.far[:, : tile.far]), dim=1) if tile.far else near


class TileGradient:
    """Accumulates the gradient of keys (or values) of a few rows into `total` [N, S, d]."""

    def __init__(self, plan: TilePlan, total: Tensor):
        self.plan, self.total = plan, total
        self.far = total.new_zeros(total.shape[0], plan.far.shape[0], total.shape[2])

    def add_(self, weights: Tensor, a: Tensor, tile: Tile) -> None:
        """Adds weights^T a, weights [N, G * rows, columns], a [N, G * rows, d], to the keys that the tile sees."""
        near = tile.near_stop - tile.near
        self.total[:, tile.near : tile.near_stop] += torch.bmm(weights[:, :, :near].transpose(1, 2), a)
        if tile.far:
            self.far[:, : tile.far] += torch.bmm(weights[:, :, near:].transpose(1, 2), a)

    def finish(self) -> None:
        start = 0
        for s in self.plan.far_slices:
            count = len(range(s.start, s.stop, s.step))
            self.total[:, s] += self.far[:, start : start + count]
            start += count
