"""Triton kernels of dilated attention's backward pass: scores are computed anew, nothing is added atomically.

Up to three launches: dQ, per tile of queries, which also leaves delta (the sum of output x its gradient) for the
others; dK and dV of the band and the token itself, per tile of keys; dK and dV of the far list, per tile of entries,
added to the rows that are written already. Without any window the first launch writes what the token itself adds to dK
and dV, since it has all that this needs, and the second is left out. Where the list is too short to fill the GPU, the
queries of each tile are cut into parts, and a further launch adds their sums in order.

The two kernels of dK and dV read tiles of queries through descriptors where they can (TMA; `boxes` of `fused.Tiles`):
no thread then holds addresses, nor its own copy of lse and delta on their way through shared memory, and registers are
left for tiles of 64 queries.

Query heads that share keys (GROUP of them) each leave a dK and dV of their own in float32; `fused.backward` adds them
up. This is the simple way: kernels that sum over the group themselves would save that memory and its traffic.
"""

import triton
import triton.language as tl

from ratplus.kernels.attention.fused_forward import far_count, far_position, tile_pointers, whole_tiles


@triton.jit
def d_scores(a, b, c, d, visible, lse2, delta, scale2, MASK: tl.constexpr):
    """(weights, d scores) of one tile: scores = a b^T, d weights = c d^T; lse2 and delta broadcast along queries.

    MASK: whether some pair of the tile isn't `visible`.
    """
    weights = tl.exp2(tl.dot(a, tl.trans(b), input_precision="ieee") * scale2 - lse2)
    if MASK:
        weights = tl.where(visible, weights, 0.0)
    return weights, weights * (tl.dot(c, tl.trans(d), input_precision="ieee") - delta)


@triton.jit(do_not_specialize=["length"])
def dq_kernel(
    q, k, v, dilations, windows, sinks_of, out, d_out, lse, delta, dq, dk, dv, length, heads, scale,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    OWN: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dq [B, T, H, D]; the same three parts as the forward kernel. delta [B * H, T] float32.

    OWN: also writes dk and dv [B, T, H, D] as the query at a key's own position gives them.
    """
    tiles = tl.cdiv(length, BM)
    tile = tiles - 1 - tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    size = tl.cast(heads, tl.int64) * D
    q += b * q_b + h * q_h
    k += b * k_b + shared * k_h
    v += b * v_b + shared * v_h
    packed = b * length * size + h * D  # where this head begins in tensors [B, T, H, D]

    t0 = tile * BM
    last = tl.minimum(t0 + BM, length) - 1
    t = t0 + tl.arange(0, BM)
    inside = (t < length)[:, None]
    scale2 = scale * 1.4426950408889634
    q_tile = tl.load(tile_pointers(q, t, q_t, D), mask=inside, other=0.0)
    do_tile = tl.load(tile_pointers(d_out + packed, t, size, D), mask=inside, other=0.0)
    out_tile = tl.load(tile_pointers(out + packed, t, size, D), mask=inside, other=0.0)
    own_k = tl.load(tile_pointers(k, t, k_t, D), mask=inside, other=0.0).to(tl.float32)
    own_v = tl.load(tile_pointers(v, t, v_t, D), mask=inside, other=0.0).to(tl.float32)
    at = row.to(tl.int64) * length + t
    lse2 = tl.load(lse + at, mask=t < length, other=0.0)[:, None] * 1.4426950408889634
    d_sum = tl.sum(out_tile.to(tl.float32) * do_tile.to(tl.float32), axis=1)
    tl.store(delta + at, d_sum, mask=t < length)
    d_sum = d_sum[:, None]

    weight = tl.exp2(tl.sum(q_tile.to(tl.float32) * own_k, axis=1)[:, None] * scale2 - lse2)
    d_score = weight * (tl.sum(do_tile.to(tl.float32) * own_v, axis=1)[:, None] - d_sum)
    if OWN:
        dk_tile, dv_tile = d_score * scale * q_tile.to(tl.float32), weight * do_tile.to(tl.float32)
        tl.store(tile_pointers(dk + packed, t, size, D), dk_tile.to(dk.dtype.element_ty), mask=inside)
        tl.store(tile_pointers(dv + packed, t, size, D), dv_tile.to(dv.dtype.element_ty), mask=inside)
    acc = d_score * own_k

    limit = (t - window)[:, None]
    far_end = far_count(last - window, dilation, sinks)
    start, full = whole_tiles(far_count(t0 - window, dilation, sinks), sinks, BN)
    position = far_position(start + tl.arange(0, BN), dilation, sinks)
    k_at, v_at = tile_pointers(k, position, k_t, D), tile_pointers(v, position, v_t, D)
    step = tl.maximum(dilation, 1).to(tl.int64) * BN
    for _ in range(start, full, BN):
        k_tile, v_tile = tl.load(k_at), tl.load(v_at)
        _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, True, lse2, d_sum, scale2, False)
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")
        k_at += step * k_t
        v_at += step * v_t
    for n0 in range(0, start + far_end - full, BN):
        n = n0 + tl.where(n0 < start, 0, full - start) + tl.arange(0, BN)
        position = far_position(n, dilation, sinks)
        there = (n < far_end)[:, None]
        k_tile = tl.load(tile_pointers(k, position, k_t, D), mask=there, other=0.0)
        v_tile = tl.load(tile_pointers(v, position, v_t, D), mask=there, other=0.0)
        visible = (position[None, :] < limit) & (n < far_end)[None, :]
        _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, visible, lse2, d_sum, scale2, True)
        acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    if window > 0:
        for j0 in range(tl.maximum(t0 - window, 0), last, BN):
            j = j0 + tl.arange(0, BN)
            there = (j < length)[:, None]
            k_tile = tl.load(tile_pointers(k, j, k_t, D), mask=there, other=0.0)
            v_tile = tl.load(tile_pointers(v, j, v_t, D), mask=there, other=0.0)
            visible = (j[None, :] >= limit) & (j[None, :] < t[:, None])
            _weights, ds = d_scores(q_tile, k_tile, do_tile, v_tile, visible, lse2, d_sum, scale2, True)
            acc = tl.dot(ds.to(k_tile.dtype), k_tile, acc, input_precision="ieee")

    tl.store(tile_pointers(dq + packed, t, size, D), (acc * scale).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def _add_tile(dk, dv, k, v, q_tile, do_tile, lse2, d_sum, visible, scale2, MASK: tl.constexpr):
    """One tile of queries into dk, dv [keys, D]. visible: [keys, queries]; MASK: whether some pair isn't."""
    weights, ds = d_scores(k, q_tile, v, do_tile, visible, lse2[None, :], d_sum[None, :], scale2, MASK)
    dv = tl.dot(weights.to(do_tile.dtype), do_tile, dv, input_precision="ieee")
    dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def add_queries(dk, dv, k, v, t, q, d_out, lse, delta, q_t, size, length, visible, scale2, D: tl.constexpr):
    """The queries t into dk, dv [keys, D], where some pair isn't `visible` [keys, queries].

    Queries past the end are read as zeros, as are their gradient, lse and delta: they add zeros.
    """
    inside = t < length
    q_tile = tl.load(tile_pointers(q, t, q_t, D), mask=inside[:, None], other=0.0)
    do_tile = tl.load(tile_pointers(d_out, t, size, D), mask=inside[:, None], other=0.0)
    lse2 = tl.load(lse + t, mask=inside, other=0.0) * 1.4426950408889634
    d_sum = tl.load(delta + t, mask=inside, other=0.0)
    return _add_tile(dk, dv, k, v, q_tile, do_tile, lse2, d_sum, visible, scale2, True)


@triton.jit
def add_boxes(
    dk, dv, k, v, position, window, first, end, q_boxes, do_boxes, lse_boxes, delta_boxes, b, h, row, scale2,
    BAND: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The queries first .. end - 1 into dk, dv of keys at `position`: those within `window`, or (no BAND) behind it.

    One loop with a mask: two loops, as with addresses, would hold too much in registers. Queries past the end of the
    sequence arrive as zeros, as do their lse and delta: they add zeros.
    """
    for t0 in range(first, end, BM):
        away = t0 + tl.arange(0, BM)[None, :] - position[:, None]
        visible = (away > 0) & (away <= window) if BAND else away > window
        lse2 = lse_boxes.load([row, t0]).reshape(BM) * 1.4426950408889634
        d_sum = delta_boxes.load([row, t0]).reshape(BM)
        q_tile = q_boxes.load([b, h, t0, 0]).reshape(BM, D)
        do_tile = do_boxes.load([b, h, t0, 0]).reshape(BM, D)
        dk, dv = _add_tile(dk, dv, k, v, q_tile, do_tile, lse2, d_sum, visible, scale2, True)
    return dk, dv


@triton.jit(do_not_specialize=["length"])
def dkv_band_kernel(
    q, k, v, windows, d_out, q_boxes, do_boxes, lse_boxes, delta_boxes, lse, delta, dk, dv, length, heads, scale,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    BOXES: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dk, dv [B, T, H, D] of every key, from its own query and the `window` queries after it.

    BOXES: tiles of queries are read through the descriptors; without it these are None.
    """
    tiles = tl.cdiv(length, BN)
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    window = tl.load(windows + shared)
    size = tl.cast(heads, tl.int64) * D
    q += b * q_b + h * q_h
    d_out += b * length * size + h * D
    lse += row.to(tl.int64) * length
    delta += row.to(tl.int64) * length

    j0 = tl.program_id(0) % tiles * BN
    j = j0 + tl.arange(0, BN)
    inside = (j < length)[:, None]
    scale2 = scale * 1.4426950408889634
    k_tile = tl.load(tile_pointers(k + b * k_b + shared * k_h, j, k_t, D), mask=inside, other=0.0)
    v_tile = tl.load(tile_pointers(v + b * v_b + shared * v_h, j, v_t, D), mask=inside, other=0.0)

    own_q = tl.load(tile_pointers(q, j, q_t, D), mask=inside, other=0.0).to(tl.float32)
    own_do = tl.load(tile_pointers(d_out, j, size, D), mask=inside, other=0.0).to(tl.float32)
    lse2 = tl.load(lse + j, mask=j < length, other=0.0)[:, None] * 1.4426950408889634
    d_sum = tl.load(delta + j, mask=j < length, other=0.0)[:, None]
    weight = tl.exp2(tl.sum(own_q * k_tile.to(tl.float32), axis=1)[:, None] * scale2 - lse2)
    acc_v = weight * own_do
    acc_k = weight * (tl.sum(own_do * v_tile.to(tl.float32), axis=1)[:, None] - d_sum) * own_q

    if window > 0:
        end = tl.minimum(j0 + BN + window, length)
        if BOXES:
            acc_k, acc_v = add_boxes(
                acc_k, acc_v, k_tile, v_tile, j, window, j0, end, q_boxes, do_boxes, lse_boxes, delta_boxes,
                b.to(tl.int32), h.to(tl.int32), row, scale2, True, D, BM,
            )  # fmt: skip
        else:
            for t0 in range(j0, end, BM):
                t = t0 + tl.arange(0, BM)
                away = t[None, :] - j[:, None]
                acc_k, acc_v = add_queries(
                    acc_k, acc_v, k_tile, v_tile, t, q, d_out, lse, delta, q_t, size, length,
                    (away > 0) & (away <= window), scale2, D,
                )  # fmt: skip

    at = b * length * size + h * D
    tl.store(tile_pointers(dk + at, j, size, D), (acc_k * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(tile_pointers(dv + at, j, size, D), acc_v.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def add_to_keys(dk, dv, more_k, more_v, base, position, size, there, D: tl.constexpr):
    """dk, dv += more_k, more_v [keys, D] at the keys' positions."""
    dk_at, dv_at = tile_pointers(dk + base, position, size, D), tile_pointers(dv + base, position, size, D)
    more_k += tl.load(dk_at, mask=there, other=0.0).to(tl.float32)
    more_v += tl.load(dv_at, mask=there, other=0.0).to(tl.float32)
    tl.store(dk_at, more_k.to(dk.dtype.element_ty), mask=there)
    tl.store(dv_at, more_v.to(dv.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["length", "tiles", "splits"])
def dkv_far_kernel(
    q, k, v, dilations, windows, sinks_of, d_out, q_boxes, do_boxes, lse_boxes, delta_boxes, lse, delta, dk, dv,
    part_k, part_v, tiles, splits, length, heads, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    SPLIT: tl.constexpr, BOXES: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds to dk, dv what list entries receive from queries that have them outside their window.

    tiles: programs a head, enough for the longest list; those beyond a head's own list do nothing.
    SPLIT: a program takes one of `splits` parts of the queries, and leaves its sums in part_k, part_v
        [splits, B * H * tiles, BN, D] float32 for `dkv_combine_kernel`.
    BOXES: tiles of queries are read through the descriptors; without it these are None.
    """
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    size = tl.cast(heads, tl.int64) * D
    q += b * q_b + h * q_h
    d_out += b * length * size + h * D
    lse += row.to(tl.int64) * length
    delta += row.to(tl.int64) * length

    n0 = tl.program_id(0) % tiles * BN
    far_end = far_count(length - 1 - window, dilation, sinks)  # entries that some query has outside its window
    if n0 < far_end:
        n = n0 + tl.arange(0, BN)
        position = far_position(n, dilation, sinks)
        there = (n < far_end)[:, None]
        scale2 = scale * 1.4426950408889634
        k_tile = tl.load(tile_pointers(k + b * k_b + shared * k_h, position, k_t, D), mask=there, other=0.0)
        v_tile = tl.load(tile_pointers(v + b * v_b + shared * v_h, position, v_t, D), mask=there, other=0.0)
        acc_k = tl.zeros((BN, D), tl.float32)
        acc_v = tl.zeros((BN, D), tl.float32)
        first = (far_position(n0, dilation, sinks) + window + 1) // BM * BM
        last = length
        if SPLIT:  # equal parts of the queries that this tile has
            part = tl.cdiv(tl.cdiv(length - first, BM), splits) * BM
            first += tl.program_id(1) * part
            last = tl.minimum(first + part, length)
        if BOXES:
            acc_k, acc_v = add_boxes(
                acc_k, acc_v, k_tile, v_tile, position, window, first, last, q_boxes, do_boxes, lse_boxes, delta_boxes,
                b.to(tl.int32), h.to(tl.int32), row, scale2, False, D, BM,
            )  # fmt: skip
        else:
            # Whole tiles of queries between these two see all entries of this tile. (Entries that aren't there are read
            # as zeros, and what they receive is never stored.)
            start = (far_position(n0 + BN - 1, dilation, sinks) + window + BM) // BM * BM
            start = tl.minimum(tl.maximum(start, first), last)
            full = start + (last - start) // BM * BM
            t = start + tl.arange(0, BM)
            q_at, do_at = tile_pointers(q, t, q_t, D), tile_pointers(d_out, t, size, D)
            lse_at, delta_at = lse + t, delta + t
            for _ in range(start, full, BM):
                lse2 = tl.load(lse_at) * 1.4426950408889634
                acc_k, acc_v = _add_tile(
                    acc_k, acc_v, k_tile, v_tile, tl.load(q_at), tl.load(do_at), lse2, tl.load(delta_at), there, scale2,
                    False,
                )  # fmt: skip
                q_at += BM * tl.cast(q_t, tl.int64)
                do_at += BM * size
                lse_at += BM
                delta_at += BM
            for i in range(first, start + last - full, BM):  # the tiles before and behind those
                t = i + tl.where(i < start, 0, full - start) + tl.arange(0, BM)
                visible = there & (t[None, :] - position[:, None] > window)
                acc_k, acc_v = add_queries(
                    acc_k, acc_v, k_tile, v_tile, t, q, d_out, lse, delta, q_t, size, length, visible, scale2, D
                )
        if SPLIT:
            at = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * BN
            tl.store(tile_pointers(part_k, at + tl.arange(0, BN), D, D), acc_k)
            tl.store(tile_pointers(part_v, at + tl.arange(0, BN), D, D), acc_v)
        else:
            add_to_keys(dk, dv, acc_k * scale, acc_v, b * length * size + h * D, position, size, there, D)


@triton.jit(do_not_specialize=["length", "tiles", "splits"])
def dkv_combine_kernel(
    part_k, part_v, dilations, windows, sinks_of, dk, dv, tiles, splits, length, heads, scale,
    D: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Adds the parts of `dkv_far_kernel` to dk, dv, always in the same order; the same programs, without splits."""
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    n0 = tl.program_id(0) % tiles * BN
    far_end = far_count(length - 1 - window, dilation, sinks)
    if n0 < far_end:
        n = n0 + tl.arange(0, BN)
        acc_k = tl.zeros((BN, D), tl.float32)
        acc_v = tl.zeros((BN, D), tl.float32)
        at = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
        for _ in range(splits):
            acc_k += tl.load(tile_pointers(part_k, at, D, D))
            acc_v += tl.load(tile_pointers(part_v, at, D, D))
            at += tl.num_programs(0) * BN
        size = tl.cast(heads, tl.int64) * D
        position = far_position(n, dilation, sinks)
        there = (n < far_end)[:, None]
        add_to_keys(dk, dv, acc_k * scale, acc_v, b * length * size + h * D, position, size, there, D)
