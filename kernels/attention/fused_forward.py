"""Triton kernel of dilated attention's forward pass, and the arithmetic of the list of far keys.

For a tile of queries: each query's own key initialises its softmax, then come the far list (sinks and dilated keys,
sorted; those before t - W) and the band (t - W <= j < t). The three never overlap and no row is ever empty.
"""

import triton
import triton.language as tl


@triton.jit
def far_count(limit, dilation, sinks):
    """How many entries of the far list lie before position `limit`."""
    limit = tl.maximum(limit, 0)  # `//` rounds towards zero here: nothing negative may reach it
    step = tl.maximum(dilation, 1)
    dilated = tl.maximum(limit // step - sinks // step, 0)
    return tl.minimum(sinks, limit) + tl.where(dilation >= 1, dilated, 0)


@triton.jit
def far_position(n, dilation, sinks):
    """Position of the list's n-th entry."""
    step = tl.maximum(dilation, 1)
    first = (sinks // step + 1) * step - 1
    return tl.where(n < sinks, n, first + (n - sinks) * step)


@triton.jit
def whole_tiles(seen, sinks, BN: tl.constexpr):
    """(start, full): entries start .. full - 1 of the far list are whole tiles that need no care.

    Each of them is among the `seen` first entries, which every query of a tile of queries sees, and behind the sinks,
    so that positions lie `dilation` apart and addresses only advance.
    """
    full = seen // BN * BN
    return tl.minimum(tl.cdiv(sinks, BN) * BN, full), full


@triton.jit
def tile_pointers(base, rows, stride, D: tl.constexpr):
    """[rows, D] pointers; 64 bit, since rows x stride can pass 2^31."""
    return base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]


@triton.jit
def _attend(acc, m, total, q, k, v, visible, scale2, MASK: tl.constexpr):
    """One tile of keys into the running softmax (base 2).

    visible: [queries, keys]; MASK: whether some pair of the tile isn't.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASK:
        scores = tl.where(visible, scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, axis=1) * scale2)  # finite: the query's own key has set m
    weights = tl.exp2(scores * scale2 - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    acc = acc * shrink[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return acc, m_new, total * shrink + tl.sum(weights, axis=1)


@triton.jit
def _far_lists(k, v, k_t, v_t, start, full, dilation, sinks, D: tl.constexpr, BN: tl.constexpr):
    """Tensor descriptors (TMA) of K and V at the whole tiles' entries, [entries, D]; rows outside are read as 0."""
    first = far_position(start, dilation, sinks).to(tl.int64)
    step = tl.maximum(dilation, 1).to(tl.int64)
    k_list = tl.make_tensor_descriptor(k + first * k_t, [full - start, D], [step * k_t, 1], [BN, D])
    v_list = tl.make_tensor_descriptor(v + first * v_t, [full - start, D], [step * v_t, 1], [BN, D])
    return k_list, v_list


@triton.jit(do_not_specialize=["length"])
def forward_kernel(
    q, k, v, dilations, windows, sinks_of, out, lse, length, heads, scale,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
    BOXES: tl.constexpr,
):  # fmt: skip
    """out [B, T, H, D]; lse [B * H, T] float32, natural logarithm. One program: BM queries of one head.

    GROUP: query heads that share one head of keys; k, v and the patterns have H // GROUP heads.
    BOXES: whole tiles of the far list are read through descriptors that the program makes: the list as a matrix.
    """
    tiles = tl.cdiv(length, BM)
    tile = tiles - 1 - tl.program_id(0) % tiles  # the longest rows first
    row = tl.program_id(0) // tiles
    b, h = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    shared = h // GROUP  # the head of keys
    dilation, window, sinks = tl.load(dilations + shared), tl.load(windows + shared), tl.load(sinks_of + shared)
    q += b * q_b + h * q_h
    k += b * k_b + shared * k_h
    v += b * v_b + shared * v_h

    t0 = tile * BM
    last = tl.minimum(t0 + BM, length) - 1
    t = t0 + tl.arange(0, BM)
    inside = (t < length)[:, None]
    scale2 = scale * 1.4426950408889634
    q_tile = tl.load(tile_pointers(q, t, q_t, D), mask=inside, other=0.0)
    own_k = tl.load(tile_pointers(k, t, k_t, D), mask=inside, other=0.0)
    m = tl.sum(q_tile.to(tl.float32) * own_k.to(tl.float32), axis=1) * scale2
    total = tl.full((BM,), 1.0, tl.float32)
    acc = tl.load(tile_pointers(v, t, v_t, D), mask=inside, other=0.0).to(tl.float32)

    limit = (t - window)[:, None]
    far_end = far_count(last - window, dilation, sinks)
    start, full = whole_tiles(far_count(t0 - window, dilation, sinks), sinks, BN)
    if not BOXES:
        position = far_position(start + tl.arange(0, BN), dilation, sinks)
        k_at, v_at = tile_pointers(k, position, k_t, D), tile_pointers(v, position, v_t, D)
        step = tl.maximum(dilation, 1).to(tl.int64) * BN
        for _ in range(start, full, BN):
            acc, m, total = _attend(acc, m, total, q_tile, tl.load(k_at), tl.load(v_at), True, scale2, False)
            k_at += step * k_t
            v_at += step * v_t
    if BOXES:  # noqa: SIM102 - one known to the compiler, one not
        if full > start:
            k_list, v_list = _far_lists(k, v, k_t, v_t, start, full, dilation, sinks, D, BN)
            for at in range(0, full - start, BN):
                k_tile, v_tile = k_list.load([at, 0]), v_list.load([at, 0])
                acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, True, scale2, False)
    for n0 in range(0, start + far_end - full, BN):  # the tiles before and behind those
        n = n0 + tl.where(n0 < start, 0, full - start) + tl.arange(0, BN)
        position = far_position(n, dilation, sinks)
        there = (n < far_end)[:, None]
        k_tile = tl.load(tile_pointers(k, position, k_t, D), mask=there, other=0.0)
        v_tile = tl.load(tile_pointers(v, position, v_t, D), mask=there, other=0.0)
        visible = (position[None, :] < limit) & (n < far_end)[None, :]
        acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, visible, scale2, True)

    if window > 0:
        for j0 in range(tl.maximum(t0 - window, 0), last, BN):
            j = j0 + tl.arange(0, BN)
            there = (j < length)[:, None]
            k_tile = tl.load(tile_pointers(k, j, k_t, D), mask=there, other=0.0)
            v_tile = tl.load(tile_pointers(v, j, v_t, D), mask=there, other=0.0)
            visible = (j[None, :] >= limit) & (j[None, :] < t[:, None])
            acc, m, total = _attend(acc, m, total, q_tile, k_tile, v_tile, visible, scale2, True)

    size = tl.cast(heads, tl.int64) * D
    out += b * length * size + h * D
    tl.store(tile_pointers(out, t, size, D), (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + row.to(tl.int64) * length + t, (m + tl.log2(total)) * 0.6931471805599453, mask=t < length)
