"""Which blocks a query reads, chosen by Triton kernels: `selection.select_blocks` with the same definition.

The scores of many queries by means are the kernel's of `fused_scores.py` in half precision, else, and by bounds, one
product in PyTorch; those of a decoding step are a kernel's, which reads what stands for the blocks as it is stored,
once, and nothing of blocks that no query may choose. One kernel finds the best of each row of scores: a row is held in
registers, and its largest number is taken out again and again. PyTorch's `topk` would need numbers without ties, of 64
bits, and read and write them about ten times.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratplus.kernels.blocks import fused_scores
from ratplus.kernels.blocks.selection import SCORES_LIMIT, score_blocks, select_blocks
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.triton_support import interpreted

WIDEST = 1 << 14  # blocks that the registers of one program hold
_ELEMENTS = 1024  # scores a warp, at most
PITCH = 16  # a row of scores is a multiple of so many wide, so that it begins where wide loads and stores can
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
    for begin, end, count, scores in scored(q, metadata, start, blocks, slots, heads, total):
        options = constants(blocks, count)
        tiles = triton.cdiv(end - begin, options["ROWS"])
        choose_kernel[(tiles * batch * kv_heads,)](
            # Where nothing is read, of random scores or without rivals, `ids` stands for the scores.
            ids.view(torch.float32) if scores is None else scores, start, top, heads, ids, begin, end - begin, length,
            tiles, count, triton.cdiv(count, PITCH), slots, kv_heads, blocks.seed & 0xFFFFFFFF, **options,
        )  # fmt: skip
    return ids


def scored(
    q: Tensor, metadata: Tensor, start: Tensor, blocks: Blocks, slots: int, heads: Tensor, total: int
) -> Iterator[tuple[int, int, int, Tensor | None]]:
    """For `choose_kernel`: (begin, end, count, scores) of the queries begin .. end - 1 and the first `count` blocks.

    Some queries at a time; scores are None where none are needed.
    """
    batch, kv_heads, stored = metadata.shape[:3]
    length, stored = q.shape[2], min(stored, (total - 1) // blocks.span)
    needed = blocks.score != "random" and slots > 1 + blocks.first
    parts = None
    if needed and fused_scores.takes(q, blocks):
        parts = fused_scores.factors(metadata[:, :, :stored], q.dtype)
    rows = max(1, SCORES_LIMIT["cuda"] // max(1, batch * kv_heads * stored))
    for begin in range(0, length, rows):
        end, scores = min(length, begin + rows), None
        count = min(stored, (total - length + end - 1) // blocks.span)
        pitch = triton.cdiv(count, PITCH) * PITCH
        if needed and count > 0 and parts is None:
            scores = _scores(q[:, :, begin:end], metadata, count, pitch, start, begin, blocks, heads)
        elif needed and count > 0:
            scores = fused_scores.scores(q, parts, start, begin, end, count, pitch, blocks)
        yield begin, end, count, scores


def _scores(
    q: Tensor, metadata: Tensor, count: int, pitch: int, start: Tensor, begin: int, blocks: Blocks, heads: Tensor
) -> Tensor:  # fmt: skip
    """float32 [B, H_kv, T, pitch]; only what stands for the first `count` blocks, before a query's own, is a score."""
    batch, kv_heads, stored, parts, d_head = metadata.shape
    if q.shape[2] > 1 or metadata.stride(4) != 1 or metadata.stride(3) != d_head:
        rivals = metadata[:, :, :pitch]
        if stored < pitch:
            rivals = torch.nn.functional.pad(rivals, (0, 0, 0, 0, 0, pitch - stored))
        return score_blocks(q, rivals, start[:, None], blocks, heads).contiguous()
    scores = torch.empty(batch, kv_heads, 1, pitch, dtype=torch.float32, device=q.device)
    score_kernel[(triton.cdiv(count, SCORED), kv_heads, batch)](
        q, metadata, start, scores, begin, count, pitch, kv_heads, *q.stride()[:2], *metadata.stride()[:2],
        metadata.stride(2), D=d_head, GROUP=q.shape[1] // kv_heads, BOUNDS=parts == 2, SPAN=blocks.span, BN=SCORED,
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


@triton.jit(do_not_specialize=["begin", "rows", "length", "tiles", "count", "pitches", "slots", "seed"])
def choose_kernel(
    scores, starts, tops, numbers, ids, begin, rows, length, tiles, count, pitches, slots, heads, seed,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, FIRST: tl.constexpr, RANDOM: tl.constexpr,
):  # fmt: skip
    """Fills ids [B, heads, length, slots] of the queries begin .. begin + rows - 1. One program: ROWS of one head.

    scores: float32 [B * heads, rows, 16 * pitches]; numbers [heads]: which heads of the layer these are. WIDTH: a
    power of two that holds `count`.
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
        at = (pair * rows + row)[:, None] * (pitches * 16) + block
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


@triton.jit(do_not_specialize=["begin", "count", "pitch"])
def score_kernel(
    q, metadata, starts, scores, begin, count, pitch, heads, q_b, q_h, metadata_b, metadata_h, metadata_n,
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, SPAN: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """scores [B, heads, pitch] of one query a sequence, at position starts[b] + begin: BN blocks of a head a program.

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
    tl.store(scores + (b * heads + h) * pitch + n, total, mask=there)
