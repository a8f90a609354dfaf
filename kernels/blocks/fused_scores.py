"""Scores of blocks by their mean keys, for many queries in half precision: on tensor cores and yet those of float32.

A product of two numbers of half precision is exact in float32, and tensor cores sum in float32. A mean is float32: it
is written as the sum of three numbers of half precision, each of what the ones before it left over (24 bits in bfloat16
and more in float16), and the query meets all three. Each is scaled up by as many bits as the one before it holds, since
a remainder could be too small for float16, and sums are scaled down in between.

Bounds are scored elsewhere: in float16 their scores by such a kernel were off by 4.4e-6 on an H100, 2e-6 are allowed.

Blocks that none of a tile's queries may choose are neither read nor scored.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratplus.kernels.attention.fused_forward import tile_pointers
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.triton_support import interpreted

BITS = {torch.bfloat16: 8, torch.float16: 11}  # of a number's significand
PARTS = 3  # that a mean is split into


@dataclass(frozen=True)
class ScoreTiles:
    """Queries and blocks a tile, and the launch options."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


# By the largest head size that they serve; only that of 128 has been measured on an H100.
TILES = {64: ScoreTiles(128, 64, 8, 2), 128: ScoreTiles(128, 64, 8, 2), 256: ScoreTiles(64, 32, 4, 2)}


def chosen(d_head: int) -> ScoreTiles:
    """The table's entry for heads of that size; small tiles of the kernel in the interpreter."""
    return ScoreTiles(16, 16, 1, 1) if interpreted() else TILES[max(d_head, 64)]


def constants(d_head: int, dtype: torch.dtype, group: int, blocks: Blocks) -> dict:
    """What the kernel is compiled for; group: query heads that share one head of keys."""
    size = chosen(d_head)
    shape = {"D": d_head, "GROUP": group, "PARTS": PARTS, "SHIFT": 2.0 ** -BITS[dtype], "SPAN": blocks.span}
    return {**shape, "BM": size.BM, "BN": size.BN, "num_warps": size.num_warps, "num_stages": size.num_stages}


def takes(q: Tensor, blocks: Blocks) -> bool:
    """Whether such queries are scored here: by means, in half precision, and many, since one would fill no tile."""
    return blocks.score == "mean" and q.dtype in BITS and q.shape[2] > 1


def factors(means: Tensor, dtype: torch.dtype) -> Tensor:
    """What queries of that dtype are multiplied with, [B, H_kv, n, 3, d], of float32 means [B, H_kv, n, 1, d]."""
    parts, rest = [], means.float()
    for _ in range(PARTS):
        part = rest.to(dtype)
        parts.append(part)
        # Nothing is left over of an infinite mean.
        rest = torch.where(part.isfinite(), (rest - part.float()) * 2.0 ** BITS[dtype], 0.0)
    return torch.cat(parts[::-1], dim=3)


def scores(
    q: Tensor, parts: Tensor, start: Tensor, begin: int, end: int, count: int, pitch: int, blocks: Blocks
) -> Tensor:  # fmt: skip
    """float32 [B, H_kv, end - begin, pitch] of queries q[:, :, begin:end] and the first `count` blocks, of `factors`.

    start: int64 [B], positions of the first queries of q. Scores of blocks that a query may not choose may be left out.
    """
    batch, kv_heads, _, _, d_head = parts.shape
    found = torch.empty(batch, kv_heads, end - begin, pitch, dtype=torch.float32, device=q.device)
    options = constants(d_head, q.dtype, q.shape[1] // kv_heads, blocks)
    tiles = triton.cdiv(end - begin, options["BM"])
    scores_kernel[(tiles * batch * kv_heads,)](
        q, parts, start, found, begin, end - begin, tiles, count, pitch // 16, kv_heads, *q.stride()[:3],
        *parts.stride()[:2], **options,
    )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["begin", "rows", "tiles", "count", "pitches"])
def scores_kernel(
    q, parts, starts, scores, begin, rows, tiles, count, pitches, heads, q_b, q_h, q_t, parts_b, parts_h,
    D: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, SHIFT: tl.constexpr, SPAN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """scores [B * heads, rows, 16 * pitches] of the queries begin .. begin + rows - 1; one program: BM of one head.

    q [B, heads * GROUP, T, D]; parts [B, heads, n, PARTS, D] contiguous in its last three.
    """
    tile = tl.program_id(0) % tiles
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = pair // heads, pair % heads
    row = tile * BM + tl.arange(0, BM)
    inside = row < rows
    last = tl.load(starts + b).to(tl.int32) + begin + tl.minimum(tile * BM + BM, rows) - 1
    end = tl.minimum(count, last // SPAN)  # the blocks before the last query's own
    q += b * q_b + h * GROUP * q_h
    parts += b * parts_b + h * parts_h
    to = scores + (pair * rows + row)[:, None] * (pitches * 16)
    if GROUP == 1:
        query = tl.load(tile_pointers(q, begin + row, q_t, D), mask=inside[:, None], other=0.0)
    for n0 in range(0, end, BN):
        n = n0 + tl.arange(0, BN)
        there = n < end
        acc = tl.zeros((BM, BN), tl.float32)
        for p in tl.static_range(PARTS):
            part = tl.load(tile_pointers(parts + p * D, n, PARTS * D, D), mask=there[:, None], other=0.0)
            if p > 0:
                acc *= SHIFT
            if GROUP == 1:
                acc = tl.dot(query, tl.trans(part), acc, input_precision="ieee")
            else:
                for g in range(GROUP):
                    of_head = tile_pointers(q + g * q_h, begin + row, q_t, D)
                    one = tl.load(of_head, mask=inside[:, None], other=0.0)
                    acc = tl.dot(one, tl.trans(part), acc, input_precision="ieee")
        tl.store(to + n[None, :], acc, mask=inside[:, None] & there[None, :])
