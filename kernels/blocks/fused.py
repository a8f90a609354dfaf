"""Block attention as Triton kernels.

Blocks are scored and chosen by a few PyTorch operations that never make the host wait. A program of the forward kernel
takes a tile of queries and walks over the blocks that any of them chose: neighbouring queries choose alike, and a key
that is loaded once meets all queries of the tile. Queries that chose another block are masked, so a tile's list may be
a superset of what each needs but no query sees a key too many. No atomics: results are bitwise repeatable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ratplus.kernels.blocks import eager
from ratplus.kernels.blocks.fused_forward import forward_kernel
from ratplus.kernels.blocks.selection import blocks_of_forward
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride

FLAGS_LIMIT = 1 << 26  # (tile, block) flags that are held at a time: heads are cut to stay below


@dataclass(frozen=True)
class Tiles:
    """Queries and keys a tile, and the launch options."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    def constants(self, d_head: int, group: int, blocks: Blocks) -> dict:
        """What a kernel is compiled for; group: query heads that share one head of keys."""
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        shape = {"BLOCK": blocks.block, "STRIDE": blocks.stride, "GROUP": group}
        return {"D": d_head, "BM": self.BM, "BN": self.BN, **shape, **launch}


# Chosen without a GPU: what compiles for sm_90 without spills. Not measured.
TILES = {16: Tiles(64, 32, 4, 2), 32: Tiles(64, 32, 4, 2), 64: Tiles(64, 32, 4, 2), 128: Tiles(64, 32, 4, 2)}


def tiles(d_head: int, dtype: torch.dtype) -> Tiles:
    """Tile sizes of the forward kernel."""
    if interpreted():
        return Tiles(16, 16, 1, 1)
    if dtype == torch.float32:  # no tensor cores: what the registers hold decides
        return Tiles(32, 16, 4, 2) if d_head == 64 else Tiles(16, 16, 8, 1)
    if d_head == 256:
        return Tiles(32, 32, 8, 2)
    return TILES[d_head]


@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, top: Tensor, heads: Tensor,
    start: Tensor, metadata: Tensor | None, blocks: Blocks, slots: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `eager.forward`; out is stored [B, T, H, d]."""
    batch, count, length, d_head = q.shape
    q, k, v = (unit_stride(x) for x in (q, k, v))
    ids = blocks_of_forward(q, k, metadata, start, top, blocks, slots, heads)
    size = tiles(d_head, q.dtype)
    lists, counts = tile_lists(ids, size.BM, blocks.reach(k.shape[2]))
    out = q.new_empty(batch, length, count, d_head)
    lse = q.new_empty(batch, count, length, dtype=torch.float32)
    number = counts.shape[2]
    forward_kernel[(number * batch * count,)](
        q, k, v, dilation, window, sinks, start, ids, lists, counts, out, lse, length, number,
        lists.shape[3], slots, count, d_head**-0.5, *(stride for x in (q, k, v) for stride in x.stride()[:3]),
        **size.constants(d_head, count // k.shape[1], blocks),
    )  # fmt: skip
    return out.transpose(1, 2), lse, ids


def tile_lists(ids: Tensor, size: int, blocks: int) -> tuple[Tensor, Tensor]:
    """The blocks that any query of each tile of `size` queries chose: lists and their lengths.

    ids: int32 [B, H, T, slots]; blocks: how many there are. Returns int32 [B, H, tiles, width], ascending, and
    [B, H, tiles]. Nothing waits for the device.
    """
    batch, heads, length, slots = ids.shape
    number = -(-length // size)
    width = max(1, min(blocks, size * slots))
    lists = ids.new_zeros(batch * heads, number, width + 1)
    counts = ids.new_zeros(batch * heads, number)
    index = torch.arange(blocks, dtype=torch.int32, device=ids.device)
    padded = torch.nn.functional.pad(ids.flatten(0, 1), (0, 0, 0, number * size - length), value=-1)
    chosen = padded.view(batch * heads, number, size * slots)
    step = max(1, FLAGS_LIMIT // max(1, number * blocks))
    for first in range(0, batch * heads, step):
        part = slice(first, first + step)
        some = chosen[part].long()
        flags = torch.zeros(*some.shape[:2], blocks + 1, dtype=torch.bool, device=ids.device)
        flags.scatter_(2, some.where(some >= 0, blocks), True)
        flags = flags[:, :, :blocks]
        rank = flags.cumsum(dim=2, dtype=torch.int32)
        counts[part] = rank[:, :, -1]
        lists[part].scatter_(2, torch.where(flags, rank - 1, width).long(), index.expand(flags.shape))
    return lists.view(batch, heads, number, -1), counts.view(batch, heads, number)


# The gradients come from PyTorch operations, in tiles and block by block, on a GPU too.
backward = on_its_device(eager.backward)
