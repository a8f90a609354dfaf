"""Triton kernel of block attention's forward pass, and what its loops have in common with those of the backward pass.

A program takes a tile of queries. Each query's own key initialises its softmax. Then come the blocks that some query
of the tile chose, with a mask for those that chose another; then the far list (sinks and dilated keys before t - W) and
the band (t - W <= j < t), without the keys of blocks that a query chose. No key counts twice, and no row is ever empty.
"""

import triton
import triton.language as tl

from ratplus.kernels.attention.fused_forward import far_count, far_position, tile_pointers


@triton.jit
def _is_in(found, ids, t_rows, inside, block, slots, s):
    """`found` [queries, keys], or whether the block of the key is the one in slot s of the query's choices."""
    at = t_rows.to(tl.int64) * slots + s
    return found | (tl.load(ids + at, mask=inside & (s < slots), other=-1)[:, None] == block[None, :])


@triton.jit
def in_chosen(ids, t_rows, inside, position, slots, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr):
    """[queries, keys]: whether the key at `position` lies in a block that the query chose.

    ids: pointer to this head's choices [T, slots]; t_rows: rows of the queries, `inside` which of them exist. SLOTS: at
    least `slots`, or 0 for too many of them to unroll: a loop within a loop keeps Triton from loading ahead.
    """
    block = position // (BLOCK * STRIDE)
    found = tl.zeros((t_rows.shape[0], position.shape[0]), tl.int1)
    if SLOTS:
        for s in tl.static_range(SLOTS):
            found = _is_in(found, ids, t_rows, inside, block, slots, s)
    else:
        for s in range(slots):
            found = _is_in(found, ids, t_rows, inside, block, slots, s)
    if STRIDE > 1:
        found = found & ((position + 1) % STRIDE == 0)[None, :]
    return found


@triton.jit
def choices(ids, t_rows, inside, slots, SLOTS: tl.constexpr):
    """[queries, SLOTS]: the blocks that each query chose, held in registers for `chose`; 0 SLOTS: nothing."""
    if SLOTS:
        slot = tl.arange(0, SLOTS)[None, :]
        at = t_rows.to(tl.int64)[:, None] * slots + slot
        held = tl.load(ids + at, mask=inside[:, None] & (slot < slots), other=-1)
    else:
        held = t_rows
    return held


@triton.jit
def chose(chosen, ids, t_rows, inside, block, slots, SLOTS: tl.constexpr):
    """[queries]: whether each chose that block. chosen: of `choices`."""
    if SLOTS:
        found = tl.max((chosen == block).to(tl.int32), axis=1) > 0
    else:
        found = tl.zeros((t_rows.shape[0],), tl.int1)
        for s in range(slots):
            found = found | (tl.load(ids + t_rows.to(tl.int64) * slots + s, mask=inside, other=-1) == block)
    return found


@triton.jit
def _attend(acc, m, total, q, k, v, visible, scale2):
    """One tile of keys into the running softmax (base 2). visible: [queries, keys]."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2
    scores = tl.where(visible, scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, axis=1))  # finite: the query's own key has set m
    weights = tl.exp2(scores - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return acc, m_new, total * shrink + tl.sum(weights, axis=1)


@triton.jit(do_not_specialize=["length", "tiles", "width", "slots"])
def forward_kernel(
    q, k, v, dilations, windows, sinks_of, starts, ids, lists, counts, out, lse, length, tiles, width, slots, heads,
    scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """out [B, T, H, D]; lse [B * H, T] float32, natural logarithm. One program: BM queries of one head.

    ids [B, H // GROUP, T, slots]; lists [B, H // GROUP, tiles, width]: the blocks that a tile's queries chose, of which
    there are counts [B, H // GROUP, tiles].
    """
    tile = tiles - 1 - tl.program_id(0) % tiles  # the longest rows first
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP  # the head of keys
    of_keys = b * (heads // GROUP) + shared
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    begin = tl.load(starts + b).to(tl.int32)
    q += b * q_b + h * q_h
    k += b * k_b + shared * k_h
    v += b * v_b + shared * v_h
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
    own_k = tl.load(tile_pointers(k, t, k_t, D), mask=inside[:, None], other=0.0)
    m = tl.sum(q_tile.to(tl.float32) * own_k.to(tl.float32), axis=1) * scale2
    total = tl.full((BM,), 1.0, tl.float32)
    acc = tl.load(tile_pointers(v, t, v_t, D), mask=inside[:, None], other=0.0).to(tl.float32)

    chosen = choices(ids, rows, inside, slots, SLOTS)
    parts = tl.cdiv(BLOCK, BN)  # tiles of a block's keys
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
        acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, visible, scale2)

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
        acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, visible, scale2)

    if window > 0:
        for j0 in range(tl.maximum(first - window, 0), last, BN):
            j = j0 + tl.arange(0, BN)
            there = j < last
            k_tile = tl.load(tile_pointers(k, j, k_t, D), mask=there[:, None], other=0.0)
            v_tile = tl.load(tile_pointers(v, j, v_t, D), mask=there[:, None], other=0.0)
            visible = (j[None, :] >= limit) & (j[None, :] < t[:, None]) & there[None, :]
            visible = visible & ~in_chosen(ids, rows, inside, j, slots, BLOCK, STRIDE, SLOTS)
            acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, visible, scale2)

    size = tl.cast(heads, tl.int64) * D
    out += b * length * size + h * D
    tl.store(tile_pointers(out, rows, size, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(lse + row.to(tl.int64) * length + rows, (m + tl.log2(total)) * 0.6931471805599453, mask=inside)
