"""Triton kernels of block attention's backward pass: scores are computed anew, nothing is added atomically.

Four launches, each after the one before: dQ, per tile of queries, which also leaves delta (the sum of output x its
gradient) and what each query adds to its own key; then dK and dV of chosen blocks, per tile of a block's keys, from the
tiles of queries in which some query chose the block; of the far list, per tile of entries; of the band, per tile of
keys. The last three add to rows that are written already, and the last two leave out the keys of chosen blocks, as the
forward pass does. Grids are upper bounds, so that the host waits for nothing: programs without keys end at once.

dK and dV are summed in float32, one of each query head; `fused.backward` adds up those of heads that share keys.
"""

import triton
import triton.language as tl

from ratplus.kernels.attention.fused_backward import add_queries, add_to_keys, d_scores
from ratplus.kernels.attention.fused_forward import far_count, far_position, tile_pointers
from ratplus.kernels.blocks.fused_forward import choices, chose, in_chosen


@triton.jit(do_not_specialize=["length", "total", "tiles", "width", "slots"])
def dq_kernel(
    q, k, v, dilations, windows, sinks_of, starts, ids, lists, counts, out, d_out, lse, delta, dq, sum_k, sum_v,
    length, total, tiles, width, slots, heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """dq [B, T, H, D], delta [B * H, T] float32; the same parts as the forward kernel, and its lists of tiles.

    Also writes sum_k, sum_v [B, total, H, D] float32, of `total` keys, at each query's own key.
    """
    tile = tiles - 1 - tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    of_keys = b * (heads // GROUP) + shared
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    begin = tl.load(starts + b).to(tl.int32)
    size = tl.cast(heads, tl.int64) * D
    q += b * q_b + h * q_h
    k += b * k_b + shared * k_h
    v += b * v_b + shared * v_h
    packed = b * length * size + h * D  # where this head begins in tensors [B, T, H, D]
    ids += of_keys * length * slots
    at = of_keys * tiles + tile
    lists += at * width

    rows = tile * BM + tl.arange(0, BM)
    inside = rows < length
    t = begin + rows
    first = begin + tile * BM
    last = begin + tl.minimum(tile * BM + BM, length) - 1
    scale2 = scale * 1.4426950408889634
    q_tile = tl.load(tile_pointers(q, rows, q_t, D), mask=inside[:, None], other=0.0)
    do_tile = tl.load(tile_pointers(d_out + packed, rows, size, D), mask=inside[:, None], other=0.0)
    out_tile = tl.load(tile_pointers(out + packed, rows, size, D), mask=inside[:, None], other=0.0)
    own_k = tl.load(tile_pointers(k, t, k_t, D), mask=inside[:, None], other=0.0).to(tl.float32)
    own_v = tl.load(tile_pointers(v, t, v_t, D), mask=inside[:, None], other=0.0).to(tl.float32)
    of_rows = row.to(tl.int64) * length + rows
    lse2 = tl.load(lse + of_rows, mask=inside, other=0.0)[:, None] * 1.4426950408889634
    d_sum = tl.sum(out_tile.to(tl.float32) * do_tile.to(tl.float32), axis=1)
    tl.store(delta + of_rows, d_sum, mask=inside)
    d_sum = d_sum[:, None]

    weight = tl.exp2(tl.sum(q_tile.to(tl.float32) * own_k, axis=1)[:, None] * scale2 - lse2)
    d_score = weight * (tl.sum(do_tile.to(tl.float32) * own_v, axis=1)[:, None] - d_sum)
    own = b * total * size + h * D
    tl.store(tile_pointers(sum_k + own, t, size, D), d_score * scale * q_tile.to(tl.float32), mask=inside[:, None])
    tl.store(tile_pointers(sum_v + own, t, size, D), weight * do_tile.to(tl.float32), mask=inside[:, None])
    acc = d_score * own_k

    chosen = choices(ids, rows, inside, slots, SLOTS)
    parts = tl.cdiv(BLOCK, BN)
    for i in range(tl.load(counts + at) * parts):
        block = tl.load(lists + i // parts)
        member = i % parts * BN + tl.arange(0, BN)
        position = (block * BLOCK + member) * STRIDE + STRIDE - 1
        there = (member < BLOCK) & (position < last)
        k_tile = tl.load(tile_pointers(k, position, k_t, D), mask=there[:, None], other=0.0)
        v_tile = tl.load(tile_pointers(v, position, v_t, D), mask=there[:, None], other=0.0)
        visible = (
            chose(chosen, ids, rows, inside, block, slots, SLOTS)[:, None]
            & there[None, :]
            & (position[None, :] < t[:, None])
        )
        _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, visible, lse2, d_sum, scale2, True)
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    limit = (t - window)[:, None]
    far_end = far_count(last - window, dilation, sinks)
    for n0 in range(0, far_end, BN):
        n = n0 + tl.arange(0, BN)
        position = far_position(n, dilation, sinks)
        there = n < far_end
        k_tile = tl.load(tile_pointers(k, position, k_t, D), mask=there[:, None], other=0.0)
        v_tile = tl.load(tile_pointers(v, position, v_t, D), mask=there[:, None], other=0.0)
        visible = (position[None, :] < limit) & there[None, :]
        visible = visible & ~in_chosen(ids, rows, inside, position, slots, BLOCK, STRIDE, SLOTS)
        _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, visible, lse2, d_sum, scale2, True)
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    if window > 0:
        for j0 in range(tl.maximum(first - window, 0), last, BN):
            j = j0 + tl.arange(0, BN)
            there = j < last
            k_tile = tl.load(tile_pointers(k, j, k_t, D), mask=there[:, None], other=0.0)
            v_tile = tl.load(tile_pointers(v, j, v_t, D), mask=there[:, None], other=0.0)
            visible = (j[None, :] >= limit) & (j[None, :] < t[:, None]) & there[None, :]
            visible = visible & ~in_chosen(ids, rows, inside, j, slots, BLOCK, STRIDE, SLOTS)
            _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, visible, lse2, d_sum, scale2, True)
            acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    tl.store(
        tile_pointers(dq + packed, rows, size, D), (acc * scale).to(dq.dtype.element_ty), mask=inside[:, None]
    )  # fmt: skip


@triton.jit(do_not_specialize=["length", "total", "number", "width", "slots"])
def dkv_chosen_kernel(
    q, k, v, starts, ids, lists, counts, d_out, lse, delta, sum_k, sum_v, length, total, number, width, slots, heads,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds to sum_k, sum_v what keys of blocks receive from later queries that chose the block.

    One program: BN keys of one block, as one head's queries see them. lists [B, H // GROUP, number, width]: of each of
    `number` blocks the tiles of queries in which some query chose it; counts [B, H // GROUP, number]: how many.
    """
    parts = tl.cdiv(BLOCK, BN)
    rest = (number - 1) * parts
    n = tl.program_id(0) - tl.num_programs(0) // number
    # Block 0 of all heads first: where it is forced, every later query chose it. Then head after head.
    row = tl.where(n < 0, tl.program_id(0) // parts, n // tl.maximum(rest, 1))
    part = tl.where(n < 0, tl.program_id(0) % parts, parts + n % tl.maximum(rest, 1))
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    of_keys = b * (heads // GROUP) + shared
    block = part // parts
    count = tl.load(counts + of_keys * number + block)
    if count > 0:
        begin = tl.load(starts + b).to(tl.int32)
        size = tl.cast(heads, tl.int64) * D
        q += b * q_b + h * q_h
        d_out += b * length * size + h * D
        lse += row.to(tl.int64) * length
        delta += row.to(tl.int64) * length
        ids += of_keys * length * slots
        lists += (of_keys * number + block) * width

        member = part % parts * BN + tl.arange(0, BN)
        position = (block * BLOCK + member) * STRIDE + STRIDE - 1
        there = ((member < BLOCK) & (position < total))[:, None]
        scale2 = scale * 1.4426950408889634
        k_tile = tl.load(tile_pointers(k + b * k_b + shared * k_h, position, k_t, D), mask=there, other=0.0)
        v_tile = tl.load(tile_pointers(v + b * v_b + shared * v_h, position, v_t, D), mask=there, other=0.0)
        acc_k = tl.zeros((BN, D), tl.float32)
        acc_v = tl.zeros((BN, D), tl.float32)
        for i in range(count):
            rows = tl.load(lists + i) * BM + tl.arange(0, BM)
            inside = rows < length
            chosen = choices(ids, rows, inside, slots, SLOTS)
            visible = chose(chosen, ids, rows, inside, block, slots, SLOTS)[None, :] & there
            visible = visible & (position[:, None] < begin + rows[None, :])
            acc_k, acc_v = add_queries(
                acc_k, acc_v, k_tile, v_tile, rows, q, d_out, lse, delta, q_t, size, length, visible, scale2, D
            )
        add_to_keys(sum_k, sum_v, acc_k * scale, acc_v, b * total * size + h * D, position, size, there, D)


@triton.jit
def _add_unchosen(
    q, k, v, ids, d_out, lse, delta, sum_k, sum_v, position, there, first, last, least, most, row, begin, length, total,
    slots, heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds to sum_k, sum_v what the keys at `position` [BN] receive from those queries that did not choose them.

    Of the rows first .. last - 1 those count that stand more than `least` and at most `most` positions behind a key.
    there: [BN, 1], which of the keys exist.
    """
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    size = tl.cast(heads, tl.int64) * D
    q += b * q_b + h * q_h
    d_out += b * length * size + h * D
    lse += row.to(tl.int64) * length
    delta += row.to(tl.int64) * length
    ids += (b * (heads // GROUP) + shared) * length * slots
    scale2 = scale * 1.4426950408889634
    k_tile = tl.load(tile_pointers(k + b * k_b + shared * k_h, position, k_t, D), mask=there, other=0.0)
    v_tile = tl.load(tile_pointers(v + b * v_b + shared * v_h, position, v_t, D), mask=there, other=0.0)
    acc_k = tl.zeros((BN, D), tl.float32)
    acc_v = tl.zeros((BN, D), tl.float32)
    for r0 in range(first // BM * BM, last, BM):
        rows = r0 + tl.arange(0, BM)
        away = begin + rows[None, :] - position[:, None]
        seen = in_chosen(ids, rows, rows < length, position, slots, BLOCK, STRIDE, SLOTS)
        visible = there & (away > least) & (away <= most) & ~tl.trans(seen)
        acc_k, acc_v = add_queries(
            acc_k, acc_v, k_tile, v_tile, rows, q, d_out, lse, delta, q_t, size, length, visible, scale2, D
        )
    add_to_keys(sum_k, sum_v, acc_k * scale, acc_v, b * total * size + h * D, position, size, there, D)


@triton.jit(do_not_specialize=["length", "total", "tiles", "slots"])
def dkv_far_kernel(
    q, k, v, dilations, windows, sinks_of, starts, ids, d_out, lse, delta, sum_k, sum_v, length, total, tiles, slots,
    heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds to sum_k, sum_v what list entries receive from queries outside their window that did not choose them."""
    row = tl.program_id(0) // tiles
    shared = row % heads // GROUP
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    begin = tl.load(starts + row // heads).to(tl.int32)
    n0 = tl.program_id(0) % tiles * BN
    far_end = far_count(begin + length - 1 - window, dilation, sinks)  # entries that some query has outside its window
    if n0 < far_end:
        n = n0 + tl.arange(0, BN)
        _add_unchosen(
            q, k, v, ids, d_out, lse, delta, sum_k, sum_v, far_position(n, dilation, sinks), (n < far_end)[:, None],
            tl.maximum(far_position(n0, dilation, sinks) + window + 1 - begin, 0), length, window, begin + length,
            row, begin, length, total, slots, heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
            D, BM, BN, BLOCK, STRIDE, SLOTS, GROUP,
        )  # fmt: skip


@triton.jit(do_not_specialize=["length", "total", "tiles", "slots"])
def dkv_band_kernel(
    q, k, v, windows, starts, ids, d_out, lse, delta, sum_k, sum_v, length, total, tiles, slots, heads, scale,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds to sum_k, sum_v what keys receive from the `window` queries after them that did not choose them."""
    row = tl.program_id(0) // tiles
    window = tl.load(windows + row % heads // GROUP)
    begin = tl.load(starts + row // heads).to(tl.int32)
    j0 = tl.program_id(0) % tiles * BN
    first = tl.maximum(j0 + 1 - begin, 0)
    last = tl.minimum(j0 + BN + window - begin, length)
    if (window > 0) & (first < last):
        j = j0 + tl.arange(0, BN)
        _add_unchosen(
            q, k, v, ids, d_out, lse, delta, sum_k, sum_v, j, (j < total)[:, None], first, last, 0, window,
            row, begin, length, total, slots, heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
            D, BM, BN, BLOCK, STRIDE, SLOTS, GROUP,
        )  # fmt: skip
