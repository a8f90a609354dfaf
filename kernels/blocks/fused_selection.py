"""Which blocks a query reads, chosen by Triton kernels: `selection.select_blocks` with the same definition.

The scores of many queries are one product in PyTorch, those of a decoding step a kernel's, which reads what stands for
the blocks as it is stored, once, and nothing of blocks that no query may choose. One kernel finds the best of each row
of scores: a row is held in registers, and its largest number is taken out again and again. PyTorch's `topk` would need
numbers without ties, of 64 bits, and read and write them about ten times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratplus.kernels.blocks.selection import SCORES_LIMIT, score_blocks, select_blocks
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.triton_support import interpreted

WIDEST = 1 << 14  # blocks that the registers of one program hold
_ELEMENTS = 1024  # scores a warp, at most
SCORED, SCORE_WARPS = 32, 4  # blocks that a program of a decoding step scores


def constants(blocks: Blocks, count: int) -> dict:
    """What `choose_kernel` is compiled for where `count` blocks have scores."""
    width = max(16, triton.next_power_of_2(count))
    rows = 16 if interpreted() else max(1, _ELEMENTS // width)
    return {
        "WIDTH": width, "ROWS": rows, "SPAN": blocks.span, "FIRST": int(blocks.first),
        "RANDOM": blocks.score == "random", "num_warps": 1 if interpreted() else max(1, width // _ELEMENTS),
    }  # fmt: skip


def select(
    q: Tensor, metadata: Tensor, start: Tensor, top: Tensor, blocks: Blocks, slots: int, heads: Tensor, total: int
) -> Tensor:
    """`select_blocks` of queries q [B, H, T, d] whose last stands before position `total` in every sequence."""
    batch, kv_heads, stored = metadata.shape[:3]
    length = q.shape[2]
    # No query ranks a block that isn't complete before its own: what is stored behind needs no score.
    stored = min(stored, (total - 1) // blocks.span)
    if stored > WIDEST:
        return select_blocks(q, metadata, start, top, blocks, slots, heads)
    ids = torch.empty(batch, kv_heads, length, slots, dtype=torch.int32, device=q.device)
    if slots == 0:
        return ids
    rows = max(1, SCORES_LIMIT["cuda"] // max(1, batch * kv_heads * stored))
    for begin in range(0, length, rows):
        end = min(length, begin + rows)
        count = min(stored, (total - length + end - 1) // blocks.span)
        scores = ids.view(torch.float32)  # stands there where nothing is read: random scores, or no rivals
        if blocks.score != "random" and count > 0 and slots > 1 + blocks.first:
            scores = _scores(q[:, :, begin:end], metadata[:, :, :count], start, begin, blocks, heads)
        options = constants(blocks, count)
        tiles = triton.cdiv(end - begin, options["ROWS"])
        choose_kernel[(tiles * batch * kv_heads,)](
            scores, start, top, heads, ids, begin, end - begin, length, tiles, count, slots, kv_heads,
            blocks.seed & 0xFFFFFFFF, **options,
        )  # fmt: skip
    return ids


def _scores(q: Tensor, metadata: Tensor, start: Tensor, begin: int, blocks: Blocks, heads: Tensor) -> Tensor:
    """float32 [B, H_kv, T, n], contiguous; of a single query those of its own and later blocks are left unwritten."""
    if q.shape[2] > 1 or metadata.stride(4) != 1 or metadata.stride(3) != q.shape[3]:
        return score_blocks(q, metadata, start[:, None], blocks, heads).contiguous()
    batch, kv_heads, count, parts, d_head = metadata.shape
    scores = torch.empty(batch, kv_heads, 1, count, dtype=torch.float32, device=q.device)
    score_kernel[(triton.cdiv(count, SCORED), kv_heads, batch)](
        q, metadata, start, scores, begin, count, kv_heads, *q.stride()[:2], *metadata.stride()[:2], metadata.stride(2),
        D=d_head, GROUP=q.shape[1] // kv_heads, BOUNDS=parts == 2, SPAN=blocks.span, BN=SCORED,
        num_warps=SCORE_WARPS,
    )  # fmt: skip
    return scores


@triton.jit
def mix(state, number):
    """`selection._mix` of uint32 numbers."""
    x = state + number + tl.cast(0x9E3779B9, tl.uint32)
    x = (x ^ (x >> 16)) * tl.cast(0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.cast(0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["begin", "rows", "length", "tiles", "count", "slots", "seed"])
def choose_kernel(
    scores, starts, tops, numbers, ids, begin, rows, length, tiles, count, slots, heads, seed,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, RANDOM: tl.constexpr,
):  # fmt: skip
    """Fills ids [B, heads, length, slots] of the queries begin .. begin + rows - 1. One program: ROWS of one head.

    scores: float32 [B * heads, rows, count]; numbers [heads]: which heads of the layer these are. WIDTH: a power of two
    that holds `count`.
    """
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    h = pair % heads
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    position = tl.load(starts + pair // heads).to(tl.int32) + begin + row
    top = tl.load(tops + h)
    own = position // SPAN
    block = tl.arange(0, WIDTH)[None, :]
    rival = (block < own[:, None]) & (block >= FIRST) & (block < count) & inside[:, None]
    if RANDOM:
        of_head = mix(tl.zeros((ROWS,), tl.uint32) + seed.to(tl.uint32), tl.load(numbers + h).to(tl.uint32))
        of_row = mix(of_head, position.to(tl.uint32))
        left = (mix(of_row[:, None], block.to(tl.uint32)) >> 8).to(tl.float32)
    else:
        at = pair * rows * count + row.to(tl.int64)[:, None] * count + block
        left = tl.load(scores + at, mask=rival, other=0.0)
    # A score of minus infinity may be chosen, what is no rival may not.
    left = tl.where(rival, tl.maximum(left, -3.4028234e38), float("-inf"))

    ids += (pair * length + begin + row) * slots
    tl.store(ids, tl.where(top > 0, own, -1), mask=inside)
    if FIRST:
        tl.store(ids + 1, tl.where((own > 0) & (top > 1), 0, -1), mask=inside & (slots > 1))
    for s in range(1 + FIRST, slots):
        best = tl.max(left, axis=1)
        index = tl.min(tl.where(left == best[:, None], block, WIDTH), axis=1)  # of equal ones the first
        tl.store(ids + s, tl.where((best > float("-inf")) & (s < top), index, -1), mask=inside)
        left = tl.where(block == index[:, None], float("-inf"), left)


@triton.jit(do_not_specialize=["begin", "count"])
def score_kernel(
    q, metadata, starts, scores, begin, count, heads, q_b, q_h, metadata_b, metadata_h, metadata_n,
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, SPAN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """scores [B, heads, count] of one query a sequence, at position starts[b] + begin: BN blocks of a head a program.

    metadata [B, heads, count, 1 or 2, D]; q [B, heads * GROUP, D]. Blocks from the query's own on are left unwritten.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    h, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    own = ((tl.load(starts + b) + begin) // SPAN).to(tl.int32)
    there = (n < count) & (n < own)
    d = tl.arange(0, D)[None, :]
    at = b * metadata_b + h * metadata_h + n.to(tl.int64)[:, None] * metadata_n + d
    low = tl.load(metadata + at, mask=there[:, None], other=0.0).to(tl.float32)
    if BOUNDS:
        high = tl.load(metadata + at + D, mask=there[:, None], other=0.0).to(tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for g in range(GROUP):
        query = tl.load(q + b * q_b + (h * GROUP + g) * q_h + d).to(tl.float32)
        if BOUNDS:
            total += tl.sum(query * tl.where(query > 0.0, high, low), axis=1)  # the larger of both products
        else:
            total += tl.sum(query * low, axis=1)
    tl.store(scores + (b * heads + h) * count + n, total, mask=there)
