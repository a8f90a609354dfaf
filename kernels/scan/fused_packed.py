"""Triton kernel of the recurrence that writes only the rows that a pattern keeps. How it walks: `fused.py`."""

import triton
import triton.language as tl

from ratplus.kernels.attention.fused_forward import far_count, far_position
from ratplus.kernels.scan.fused_forward import gates, load_pair, load_rows, store_pair, store_pair_if


@triton.jit(do_not_specialize=["length", "steps", "position", "rows"])
def packed_kernel(
    logit, k, v, start, cos, sin, dilations, sinks_of, k_out, v_out, final, length, steps, position, rows, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """start [splits, 2, B, H, d] -> k_out, v_out [B, H, rows, d] and final [2, B, H, d].

    position: of the first token. Every lane counts the positions that its head has kept.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = first.to(tl.int64)
    size = tl.cast(heads, tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i  # offset in a row [H, d]
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
    x_at, k_at, v_at = head * logit_h + i, head * k_h + i, head * v_h + i
    k_out += b * size * rows
    v_out += b * size * rows
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF

    dilation, sinks = tl.load(dilations + head), tl.load(sinks_of + head)
    # Entry n of a head's list of kept positions: n for the sinks, then offset + n step; without a dilation, never.
    step = tl.where(dilation >= 1, dilation, 0)
    offset = tl.where(dilation >= 1, far_position(sinks, dilation, sinks) - sinks * dilation, -1)
    entry = far_count(position + first, dilation, sinks)
    out_at = (head.to(tl.int64) * rows - far_count(position, dilation, sinks)) * 2 * HALF + i

    begin = start + (split.to(tl.int64) * 2 * batch + b) * size
    k_one, k_two = load_pair(begin, packed, HALF)
    v_one, v_two = load_pair(begin + batch * size, packed, HALF)
    for t in range(first, last, ROWS):
        left = last - t
        xs_a = load_rows(logit, logit_t, x_at, left, float("inf"), ROWS)  # an infinite logit holds the state
        xs_b = load_rows(logit, logit_t, x_at + HALF, left, float("inf"), ROWS)
        ks_a = load_rows(k, k_t, k_at, left, 0.0, ROWS)
        ks_b = load_rows(k, k_t, k_at + HALF, left, 0.0, ROWS)
        vs_a = load_rows(v, v_t, v_at, left, 0.0, ROWS)
        vs_b = load_rows(v, v_t, v_at + HALF, left, 0.0, ROWS)
        if ROPE:
            cs = load_rows(cos, 2 * HALF, i, left, 0.0, ROWS)
            ss = load_rows(sin, 2 * HALF, i, left, 0.0, ROWS)
        for r in tl.static_range(ROWS):
            keep_a, shut_a = gates(xs_a[r])
            keep_b, shut_b = gates(xs_b[r])
            k_one = keep_a * k_one + shut_a * ks_a[r].to(tl.float32)
            k_two = keep_b * k_two + shut_b * ks_b[r].to(tl.float32)
            v_one = keep_a * v_one + shut_a * vs_a[r].to(tl.float32)
            v_two = keep_b * v_two + shut_b * vs_b[r].to(tl.float32)
            now = position + t + r
            due = (tl.where(entry < sinks, entry, offset + entry * step) == now) & (r < left)
            at = out_at + entry.to(tl.int64) * (2 * HALF)
            if ROPE:
                rotated_one = k_one * cs[r] - k_two * ss[r]
                rotated_two = k_two * cs[r] + k_one * ss[r]
                store_pair_if(due, k_out, at, rotated_one, rotated_two, HALF)
            else:
                store_pair_if(due, k_out, at, k_one, k_two, HALF)
            store_pair_if(due, v_out, at, v_one, v_two, HALF)
            entry += tl.where(due, 1, 0)
        logit += ROWS * logit_t
        k += ROWS * k_t
        v += ROWS * v_t
        if ROPE:
            cos += ROWS * 2 * HALF
            sin += ROWS * 2 * HALF
    if last == length:
        store_pair(final + b * size, packed, k_one, k_two, HALF)
        store_pair(final + (batch + b) * size, packed, v_one, v_two, HALF)
