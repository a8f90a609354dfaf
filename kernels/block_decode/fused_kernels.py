"""Triton kernels of one decoding step over selected blocks. What they do and why: `fused.py`."""

import triton
import triton.language as tl

from ratplus.kernels.attention.fused_forward import far_count, far_position
from ratplus.kernels.decode.fused_kernels import state_step


@triton.jit
def token_kernel(
    q, k, v, logit, keys, values, k_state, v_state, positions, cos, sin, q_out, heads,
    q_b, q_h, k_b, k_h, v_b, v_h, logit_b, logit_h, keys_b, keys_h, values_b, values_h,
    D: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Steps one key head's recurrence, writes its token's key and value, and rotates its queries.

    keys, values: [B, heads, S, D], a token's numbers side by side. q_out: [B, heads * GROUP, D] in the keys' dtype.
    """
    h, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + b)
    d = tl.arange(0, D)
    partner = (d + D // 2) % D  # the other channel of a rotated pair
    sign = tl.where(d < D // 2, -1.0, 1.0)
    if ROPE:
        c, s = tl.load(cos + position * D + d), tl.load(sin + position * D + d) * sign
    at = (b * heads + h) * D
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    logit += b * logit_b + h * logit_h
    key = state_step(k_state + at, k + d, logit + d, d, GATED)
    other = state_step(k_state + at, k + partner, logit + partner, partner, GATED)
    value = state_step(v_state + at, v + d, logit + d, d, GATED)
    if GATED:
        tl.debug_barrier()  # `other` was read by threads that don't own the channel
        tl.store(k_state + at + d, key)
        tl.store(v_state + at + d, value)
    if ROPE:
        key = key * c + other * s
    tl.store(keys + b * keys_b + h * keys_h + position * D + d, key.to(keys.dtype.element_ty))
    tl.store(values + b * values_b + h * values_h + position * D + d, value.to(values.dtype.element_ty))
    for g in range(GROUP):
        head = h * GROUP + g
        query = tl.load(q + b * q_b + head * q_h + d).to(tl.float32)
        if ROPE:
            query = query * c + tl.load(q + b * q_b + head * q_h + partner).to(tl.float32) * s
        tl.store(q_out + (b * heads * GROUP + head) * D + d, query.to(q_out.dtype.element_ty))


@triton.jit
def metadata_kernel(
    keys, metadata, positions, keys_b, keys_h, metadata_b, metadata_h,
    D: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, BN: tl.constexpr, BOUNDS: tl.constexpr,
):  # fmt: skip
    """Writes what stands for a block, if the token at `positions` is the last of one: its mean, or its bounds.

    metadata: [B, heads, blocks, 1 or 2, D].
    """
    h, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + b)
    if (position + 1) % (BLOCK * STRIDE) == 0:
        block = position // (BLOCK * STRIDE)
        d = tl.arange(0, D)
        keys += b * keys_b + h * keys_h
        metadata += b * metadata_b + h * metadata_h
        total = tl.zeros((D,), tl.float32)
        low = tl.full((D,), float("inf"), tl.float32)
        high = tl.full((D,), float("-inf"), tl.float32)
        for n0 in range(0, BLOCK, BN):
            member = n0 + tl.arange(0, BN)
            there = (member < BLOCK)[:, None]
            row = ((block * BLOCK + member) * STRIDE + STRIDE - 1)[:, None] * D + d[None, :]
            tile = tl.load(keys + row, mask=there, other=0.0).to(tl.float32)
            if BOUNDS:
                low = tl.minimum(low, tl.min(tl.where(there, tile, float("inf")), axis=0))
                high = tl.maximum(high, tl.max(tl.where(there, tile, float("-inf")), axis=0))
            else:
                total += tl.sum(tile, axis=0)
        if BOUNDS:
            tl.store(metadata + block * 2 * D + d, low.to(metadata.dtype.element_ty))
            tl.store(metadata + (block * 2 + 1) * D + d, high.to(metadata.dtype.element_ty))
        else:
            tl.store(metadata + block * D + d, total / BLOCK)


@triton.jit(do_not_specialize=["splits", "slots"])
def attend_kernel(
    q, keys, values, positions, dilations, windows, sinks_of, ids, out, part_acc, part_max, part_sum, heads, slots,
    splits, scale, keys_b, keys_h, values_b, values_h,
    D: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One program: all query heads of one key head of one sequence, and one split of the tiles of keys that they see.

    First the tiles of the chosen blocks, in the order of ids [B, heads, slots] (SLOTS: a power of two that holds them),
    then those of the far list and of the window. q, out: [B, heads * GROUP, D]; part_acc, part_max, part_sum likewise.
    """
    h, split, b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dilation, window, sinks = tl.load(dilations + h), tl.load(windows + h), tl.load(sinks_of + h)
    position = tl.load(positions + b).to(tl.int32)
    keys += b * keys_b + h * keys_h
    values += b * values_b + h * values_h
    ids += (b * heads + h) * slots
    slot = tl.arange(0, SLOTS)
    chosen = tl.load(ids + slot, mask=slot < slots, other=-1)

    d, g = tl.arange(0, D), tl.arange(0, ROWS)
    there = (g < GROUP)[:, None]
    row = (b * heads + h) * GROUP + g
    query = tl.load(q + row[:, None] * D + d[None, :], mask=there, other=0.0)
    scale2 = scale * 1.4426950408889634
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    if split == 0:  # the token itself, which the tiles leave out
        own = position.to(tl.int64) * D + d
        m = tl.sum(query.to(tl.float32) * tl.load(keys + own).to(tl.float32)[None, :], axis=1) * scale2
        total += 1.0
        acc += tl.load(values + own).to(tl.float32)[None, :]

    parts: tl.constexpr = (BLOCK + BN - 1) // BN  # tiles of a block's keys
    of_blocks = slots * parts
    far_end = far_count(position - window, dilation, sinks)
    of_far = tl.cdiv(far_end, BN)
    first = tl.maximum(position - window, 0)
    tiles = of_blocks + of_far + tl.cdiv(position - first, BN)
    share = tl.cdiv(tiles, splits)
    for i in range(split * share, tl.minimum(split * share + share, tiles)):
        n = tl.arange(0, BN)
        block = tl.load(ids + i // parts, mask=i < of_blocks, other=-1)
        member = i % parts * BN + n
        in_block = (block * BLOCK + member) * STRIDE + STRIDE - 1
        entry = (i - of_blocks) * BN + n
        in_far = far_position(entry, dilation, sinks)
        j = tl.where(i < of_blocks, in_block, tl.where(i < of_blocks + of_far, in_far, first + entry - of_far * BN))
        static = tl.max((chosen[None, :] == (j // (BLOCK * STRIDE))[:, None]).to(tl.int32), axis=1) == 0
        if STRIDE > 1:
            static = static | ((j + 1) % STRIDE != 0)
        static = static & ((i >= of_blocks + of_far) | ((entry < far_end) & (j < position - window)))
        visible = (j < position) & tl.where(i < of_blocks, (block >= 0) & (member < BLOCK), static)
        rows = j.to(tl.int64)[:, None] * D + d[None, :]
        k_tile = tl.load(keys + rows, mask=visible[:, None], other=0.0)
        v_tile = tl.load(values + rows, mask=visible[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(k_tile), input_precision="ieee") * scale2
        scores = tl.where(visible[None, :], scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, axis=1))
        anchor = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing visible yet: no -inf - (-inf)
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(m - anchor)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        m = m_new

    if SPLIT:
        row = row * splits + split
        tl.store(part_acc + row[:, None] * D + d[None, :], acc, mask=there)
        tl.store(part_max + row, m, mask=g < GROUP)
        tl.store(part_sum + row, total, mask=g < GROUP)
    else:
        tl.store(out + row[:, None] * D + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=there)
