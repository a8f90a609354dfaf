"""Triton kernel of one decoding step where query heads share keys (grouped-query and multi-query attention).

One program takes all query heads of a key head, so that each cache entry is read once for all of them; scores and sums
are products on tensor cores, which need 16 rows: fewer query heads are padded with zeros that are thrown away.
"""

import triton
import triton.language as tl

from ratplus.kernels.decode.fused_kernels import is_seen, load_token, slots_of_split, take_token


@triton.jit(do_not_specialize=["splits"])
def group_step_kernel(
    q, k, v, logit, keys, values, k_state, v_state, positions, dilations, windows, sinks_of, offsets, cos, sin,
    out, part_acc, part_max, part_sum, slots, share, heads, splits, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, logit_b, logit_h,
    D: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr, EQUAL: tl.constexpr,
    SPLIT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`step_kernel` for GROUP query heads at once; `heads` are key heads, ROWS the power of two, at least 16, that
    holds a group.

    out and part_acc, part_max, part_sum are by query heads: [B, heads * GROUP, ...].
    """
    h, split, b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dilation, window, sinks = tl.load(dilations + h), tl.load(windows + h), tl.load(sinks_of + h)
    position = tl.load(positions + b).to(tl.int32)
    if EQUAL:
        own, count = h * share, share
    else:
        own = tl.load(offsets + h).to(tl.int64)
        count = (tl.load(offsets + h + 1).to(tl.int64) - own).to(tl.int32)
    keys += (b * slots + own) * D
    values += (b * slots + own) * D

    d = tl.arange(0, D)
    partner = (d + D // 2) % D  # the other channel of a rotated pair
    sign = tl.where(d < D // 2, -1.0, 1.0)
    if ROPE:
        angle = position.to(tl.int64) * D + d
        c, s = tl.load(cos + angle), tl.load(sin + angle) * sign
    else:
        c, s = sign, sign  # unused
    g = tl.arange(0, ROWS)
    there = (g < GROUP)[:, None]
    q += b * q_b + (h * GROUP + g.to(tl.int64))[:, None] * q_h
    query = tl.load(q + d[None, :], mask=there, other=0.0).to(tl.float32)
    if ROPE:
        other = tl.load(q + partner[None, :], mask=there, other=0.0).to(tl.float32)
        query = query * c[None, :] + other * s[None, :]
    query = query.to(keys.dtype.element_ty)  # the cache's precision, as on the other paths
    scale2 = scale * 1.4426950408889634

    m = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    step = tl.maximum(dilation, 1)
    if split == 0:
        at = (b * heads + h) * D
        token = load_token(
            k + b * k_b + h * k_h, v + b * v_b + h * v_h, logit + b * logit_b + h * logit_h, k_state, v_state, at, d,
            partner, True, GATED,
        )  # fmt: skip
        key, value = take_token(
            token, k_state, v_state, keys, values, at, d, c, s, position, dilation, step, window, sinks, count,
            D, GATED, ROPE,
        )  # fmt: skip
        m = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1) * scale2
        total += 1.0
        acc += value.to(tl.float32)[None, :]

    begin, end = slots_of_split(split, splits, position, dilation, step, window, sinks, count, BN)
    for u0 in range(begin, end, BN):
        u = u0 + tl.arange(0, BN)
        visible = is_seen(u, position, window, sinks) & (u < end)
        rows = u.to(tl.int64)[:, None] * D + d[None, :]
        k_tile = tl.load(keys + rows, visible[:, None], 0.0)
        v_tile = tl.load(values + rows, visible[:, None], 0.0)
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

    row = (b * heads + h) * GROUP + g
    if SPLIT:
        part = row * splits + split
        tl.store(part_acc + part[:, None] * D + d[None, :], acc, mask=there)
        tl.store(part_max + part, m, mask=g < GROUP)
        tl.store(part_sum + part, total, mask=g < GROUP)
    else:
        tl.store(out + row[:, None] * D + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=there)
