"""Block attention as Triton kernels.

Blocks are scored and chosen by what `fused_selection.py` launches; nothing makes the host wait. A program of the
forward kernel takes a tile of queries and walks over the blocks that any of them chose: neighbouring queries choose
alike, and a key that is loaded once meets all queries of the tile. Queries that chose another block are masked, so a
tile's list may be a superset of what each needs but no query sees a key too many. The backward pass walks the same
lists for queries, and for keys their converse: the tiles of queries in which some query chose a block. No atomics:
results are bitwise repeatable.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ratplus.kernels.blocks.fused_backward import dkv_band_kernel, dkv_chosen_kernel, dkv_far_kernel, dq_kernel
from ratplus.kernels.blocks.fused_forward import forward_kernel
from ratplus.kernels.blocks.fused_selection import select
from ratplus.kernels.blocks.metadata import summarise
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride

HELD_SLOTS = 32  # chosen blocks of a query that a program holds in registers; of more it reads them for every tile
FLAGS_LIMIT = 1 << 24  # (tile, block) flags that are held at a time: heads are cut to stay below


@dataclass(frozen=True)
class Tiles:
    """Queries and keys a tile, and the launch options."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int

    def constants(self, d_head: int, group: int, blocks: Blocks, slots: int) -> dict:
        """What a kernel is compiled for; group: query heads that share one head of keys."""
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        shape = {"BLOCK": blocks.block, "STRIDE": blocks.stride, "GROUP": group}
        shape["SLOTS"] = triton.next_power_of_2(max(1, slots)) if slots <= HELD_SLOTS else 0
        return {"D": d_head, "BM": self.BM, "BN": self.BN, **shape, **launch}


# By the largest head size that they serve, of half precision. Those of 128 were the fastest on an H100 (2026-11-27); of
# the others, and of float32, which has no tensor cores, these are the largest that compile for sm_90 without spills.
TILES = {
    "forward": {64: Tiles(64, 64, 4, 2), 128: Tiles(64, 64, 4, 3), 256: Tiles(32, 32, 8, 2)},
    "dq": {64: Tiles(64, 32, 4, 2), 128: Tiles(32, 32, 4, 2), 256: Tiles(16, 32, 8, 2)},
    "dkv": {64: Tiles(32, 64, 4, 2), 128: Tiles(64, 32, 4, 2), 256: Tiles(32, 32, 8, 2)},
    "static dkv": {64: Tiles(32, 32, 4, 2), 128: Tiles(32, 32, 4, 2), 256: Tiles(32, 32, 8, 2)},
}
FLOAT32_TILES = {32: Tiles(16, 16, 4, 1), 64: Tiles(32, 16, 4, 2), 128: Tiles(16, 16, 8, 1)}
FLOAT32_STATIC_DKV = {**FLOAT32_TILES, 128: Tiles(16, 16, 4, 1)}  # with 8 warps ptxas stops at 64 registers and spills


def tiles(d_head: int, dtype: torch.dtype, kind: str = "forward") -> Tiles:
    """Tile sizes of the kernels of a kind of TILES."""
    if interpreted():
        return Tiles(16, 16, 1, 1)
    if dtype == torch.float32:
        return (FLOAT32_STATIC_DKV if kind == "static dkv" else FLOAT32_TILES)[max(d_head, 32)]
    return TILES[kind][max(d_head, 64)]


@on_its_device
def forward(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, top: Tensor, heads: Tensor,
    start: Tensor, metadata: Tensor | None, blocks: Blocks, slots: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `eager.forward`; out is stored [B, T, H, d]."""
    d_head = q.shape[3]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    start, heads = start.contiguous(), heads.contiguous()
    ids = choose(q, k, metadata, start, top, blocks, slots, heads)
    lists, counts = tile_lists(ids, tiles(d_head, q.dtype).BM, blocks.reach(k.shape[2]))
    out, lse = attend(q, k, v, dilation, window, sinks, start, ids, lists, counts, blocks)
    return out, lse, ids


def choose(
    q: Tensor, k: Tensor, metadata: Tensor | None, start: Tensor, top: Tensor, blocks: Blocks, slots: int, heads: Tensor
) -> Tensor:  # fmt: skip
    """The blocks that queries [B, H, T, d] read, int32 [B, H_kv, T, slots]; metadata None: made from the keys."""
    metadata = summarise(k, blocks) if metadata is None else metadata
    return select(q, metadata, start, top, blocks, slots, heads, k.shape[2])


def attend(
    q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, start: Tensor, ids: Tensor,
    lists: Tensor, counts: Tensor, blocks: Blocks,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [B, H, T, d], stored [B, T, H, d], and lse under the choice `ids` and its `tile_lists`."""
    batch, count, length, d_head = q.shape
    out = q.new_empty(batch, length, count, d_head)
    lse = q.new_empty(batch, count, length, dtype=torch.float32)
    number, slots, size = counts.shape[2], ids.shape[3], tiles(d_head, q.dtype)
    forward_kernel[(number * batch * count,)](
        q, k, v, dilation, window, sinks, start, ids, lists, counts, out, lse, length, number,
        lists.shape[3], slots, count, d_head**-0.5, *(stride for x in (q, k, v) for stride in x.stride()[:3]),
        **size.constants(d_head, count // k.shape[1], blocks, slots),
    )  # fmt: skip
    return out.transpose(1, 2), lse


@on_its_device
def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, dilation: Tensor, window: Tensor, sinks: Tensor, top: Tensor,
    start: Tensor, out: Tensor, lse: Tensor, ids: Tensor, blocks: Blocks,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `eager.backward`: gradients of q, k, v, each stored [B, T, H, d], under the choice `ids`."""
    batch, heads, length, d_head = q.shape
    total, group, slots, rows = k.shape[2], heads // k.shape[1], ids.shape[3], batch * heads
    q, k, v = (unit_stride(x) for x in (q, k, v))
    start = start.contiguous()
    # In memory order [B, T, H, d]; the gradient of a sum arrives with stride 0 and is written out here.
    out, d_out = (x.transpose(1, 2).contiguous() for x in (out, d_out))
    delta = torch.empty_like(lse)
    dq = q.new_empty(batch, length, heads, d_head)
    # Of every query head its own, in float32: three kernels add to them, and a group's heads are summed below.
    sum_k, sum_v = (q.new_zeros(batch, total, heads, d_head, dtype=torch.float32) for _ in range(2))
    scale, strides = d_head**-0.5, [stride for x in (q, k, v) for stride in x.stride()[:3]]
    static, number = (dilation, window, sinks), blocks.reach(total)

    size = tiles(d_head, q.dtype, "dq")
    lists, counts = tile_lists(ids, size.BM, number)
    of_queries = counts.shape[2]
    dq_kernel[(of_queries * rows,)](
        q, k, v, *static, start, ids, lists, counts, out, d_out, lse, delta, dq, sum_k, sum_v, length, total,
        of_queries, lists.shape[3], slots, heads, scale, *strides, **size.constants(d_head, group, blocks, slots),
    )  # fmt: skip
    size = tiles(d_head, q.dtype, "dkv")
    constants = size.constants(d_head, group, blocks, slots)
    lists, counts = query_lists(ids, size.BM, number)
    dkv_chosen_kernel[(number * -(-blocks.block // size.BN) * rows,)](
        q, k, v, start, ids, lists, counts, d_out, lse, delta, sum_k, sum_v, length, total, number, lists.shape[3],
        slots, heads, scale, *strides, **constants,
    )  # fmt: skip
    size = tiles(d_head, q.dtype, "static dkv")
    constants = size.constants(d_head, group, blocks, slots)
    of_keys = -(-total // size.BN)
    after = (start, ids, d_out, lse, delta, sum_k, sum_v, length, total, of_keys, slots, heads, scale, *strides)
    dkv_far_kernel[(of_keys * rows,)](q, k, v, *static, *after, **constants)
    dkv_band_kernel[(of_keys * rows,)](q, k, v, window, *after, **constants)
    if group > 1:
        sum_k, sum_v = (x.unflatten(2, (-1, group)).sum(dim=3) for x in (sum_k, sum_v))
    return tuple(x.to(q.dtype).transpose(1, 2) for x in (dq, sum_k, sum_v))


def tile_lists(ids: Tensor, size: int, blocks: int) -> tuple[Tensor, Tensor]:
    """The blocks that any query of each tile of `size` queries chose: lists and their lengths.

    ids: int32 [B, H, T, slots]; blocks: how many there are. Returns int32 [B, H, tiles, width], ascending, and
    [B, H, tiles]; a list's last column is none of it. Nothing waits for the device.
    """
    return _lists(ids, size, blocks, max(1, min(blocks, size * ids.shape[3])), of_blocks=False)


def query_lists(ids: Tensor, size: int, blocks: int) -> tuple[Tensor, Tensor]:
    """The tiles of `size` queries in which any query chose each block: lists and their lengths, as `tile_lists`.

    Returns int32 [B, H, blocks, tiles], ascending, and [B, H, blocks].
    """
    return _lists(ids, size, blocks, -(-ids.shape[2] // size), of_blocks=True)


def _lists(ids: Tensor, size: int, blocks: int, width: int, of_blocks: bool) -> tuple[Tensor, Tensor]:
    batch, heads, length, slots = ids.shape
    number = -(-length // size)
    outer, inner = (blocks, number) if of_blocks else (number, blocks)
    lists = ids.new_zeros(batch * heads, outer, width + 1)
    counts = ids.new_zeros(batch * heads, outer)
    index = torch.arange(inner, dtype=torch.int32, device=ids.device)
    padded = torch.nn.functional.pad(ids.flatten(0, 1), (0, 0, 0, number * size - length), value=-1)
    chosen = padded.view(batch * heads, number, size * slots)
    step = max(1, FLAGS_LIMIT // max(1, number * blocks))
    for first in range(0, batch * heads, step):
        part = slice(first, first + step)
        some = chosen[part].long()
        flags = torch.zeros(*some.shape[:2], blocks + 1, dtype=torch.bool, device=ids.device)
        flags.scatter_(2, some.where(some >= 0, blocks), True)
        flags = flags[:, :, :blocks]
        flags = flags.transpose(1, 2) if of_blocks else flags
        rank = flags.cumsum(dim=2, dtype=torch.int32)
        counts[part] = rank[:, :, -1]
        lists[part].scatter_(2, torch.where(flags, rank - 1, width).long(), index.expand(flags.shape))
    return lists.view(batch, heads, outer, -1), counts.view(batch, heads, outer)
