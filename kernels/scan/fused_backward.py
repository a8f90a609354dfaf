"""Triton kernels of the recurrence's backward pass. What they compute and why they look so: `fused.py`.

`backward_kernel` walks from the last step of a split to its first: row r of a block lies r steps before the block's
base pointer. `backward_summary_kernel` walks the other way, so that it may stop early.
"""

import triton
import triton.language as tl

from ratplus.kernels.scan.fused_forward import gates, load_pair, load_rows, store_pair, store_pair_if


@triton.jit(do_not_specialize=["length", "steps", "batch", "heads"])
def backward_summary_kernel(
    logit, grad_k, grad_v, cos, sin, summary, length, steps, batch, heads, logit_b, logit_h, logit_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Per split: the product of its gates, and what flows out of its first step when nothing flows into its last.

    It walks from the first step on and stops, after whole chunks, once every channel's product of gates is exactly 0:
    nothing from a later step can then reach the first.

    summary: [splits, 3, B, H, d] float32.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    count = tl.minimum(first + steps, length) - first
    t64 = first.to(tl.int64)
    size = tl.cast(heads, tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i
    logit += b * logit_b + t64 * logit_t
    x_at = head * logit_h + i
    grad_k += (b * length + t64) * size
    grad_v += (b * length + t64) * size
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF
    gate_a = tl.full((PAIRS,), 1.0, tl.float32)
    gate_b = tl.full((PAIRS,), 1.0, tl.float32)
    k_one, k_two, v_one, v_two = (tl.zeros((PAIRS,), tl.float32),) * 4
    n0 = count * 0
    while n0 < count:
        for n in tl.range(n0, tl.minimum(n0 + CHUNK, count), ROWS, num_stages=STAGES):
            left = count - n
            xs_a = load_rows(logit, logit_t, x_at, left, float("inf"), ROWS)
            xs_b = load_rows(logit, logit_t, x_at + HALF, left, float("inf"), ROWS)
            dks_a = load_rows(grad_k, size, packed, left, 0.0, ROWS)
            dks_b = load_rows(grad_k, size, packed + HALF, left, 0.0, ROWS)
            dvs_a = load_rows(grad_v, size, packed, left, 0.0, ROWS)
            dvs_b = load_rows(grad_v, size, packed + HALF, left, 0.0, ROWS)
            if ROPE:
                cs = load_rows(cos, 2 * HALF, i, left, 0.0, ROWS)
                ss = load_rows(sin, 2 * HALF, i, left, 0.0, ROWS)
            for r in tl.static_range(ROWS):
                dk_one, dk_two = dks_a[r].to(tl.float32), dks_b[r].to(tl.float32)
                if ROPE:
                    dk_one, dk_two = dk_one * cs[r] + dk_two * ss[r], dk_two * cs[r] - dk_one * ss[r]
                keep_a, _shut_a = gates(xs_a[r])
                keep_b, _shut_b = gates(xs_b[r])
                gate_a, gate_b = gate_a * keep_a, gate_b * keep_b
                k_one += gate_a * dk_one
                k_two += gate_b * dk_two
                v_one += gate_a * dvs_a[r].to(tl.float32)
                v_two += gate_b * dvs_b[r].to(tl.float32)
            logit += ROWS * logit_t
            grad_k += ROWS * size
            grad_v += ROWS * size
            if ROPE:
                cos += ROWS * 2 * HALF
                sin += ROWS * 2 * HALF
        n0 += CHUNK
        n0 = tl.where(tl.max(tl.maximum(gate_a, gate_b), axis=0) > 0, n0, count)
    begin = summary + (split.to(tl.int64) * 3 * batch + b) * size
    store_pair(begin, packed, gate_a, gate_b, HALF)
    store_pair(begin + batch * size, packed, k_one, k_two, HALF)
    store_pair(begin + 2 * batch * size, packed, v_one, v_two, HALF)


@triton.jit(do_not_specialize=["length", "steps", "batch", "heads"])
def backward_kernel(
    logit, k, v, initial, cos, sin, k_out, v_out, grad_k, grad_v, start, d_logit, dk, dv, d_initial,
    length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """With carry = g_{t+1} dh_{t+1}, whose value after the last step of a split is `start`:

    dh_t = (gradient of output t) + carry;  du = (1 - g) dh;  dlogit = g du (h_{t-1} - u), summed over k and v.
    h_{t-1} is the output one step earlier, un-rotated. The factor g keeps its rounding (bf16) from mattering.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = (last - 1).to(tl.int64)
    size = tl.cast(heads, tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
    x_at, k_at, v_at = head * logit_h + i, head * k_h + i, head * v_h + i
    row = (b * length + t64) * size
    k_out += row - size  # one step earlier
    v_out += row - size
    grad_k += row
    grad_v += row
    d_logit += row
    dk += row
    dv += row
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF
    begin = start + (split.to(tl.int64) * 2 * batch + b) * size
    carry_ka, carry_kb = load_pair(begin, packed, HALF)
    carry_va, carry_vb = load_pair(begin + batch * size, packed, HALF)
    first_ka, first_kb = load_pair(initial + b * size, packed, HALF)
    first_va, first_vb = load_pair(initial + (batch + b) * size, packed, HALF)
    for n in tl.range(0, last - first, ROWS, num_stages=STAGES):
        left = last - first - n
        before = last - 1 - n  # tokens before row 0; row r has r fewer, and a row with none has `initial` before it
        xs_a = load_rows(logit, -logit_t, x_at, left, float("inf"), ROWS)
        xs_b = load_rows(logit, -logit_t, x_at + HALF, left, float("inf"), ROWS)
        ks_a = load_rows(k, -k_t, k_at, left, 0.0, ROWS)
        ks_b = load_rows(k, -k_t, k_at + HALF, left, 0.0, ROWS)
        vs_a = load_rows(v, -v_t, v_at, left, 0.0, ROWS)
        vs_b = load_rows(v, -v_t, v_at + HALF, left, 0.0, ROWS)
        dks_a = load_rows(grad_k, -size, packed, left, 0.0, ROWS)
        dks_b = load_rows(grad_k, -size, packed + HALF, left, 0.0, ROWS)
        dvs_a = load_rows(grad_v, -size, packed, left, 0.0, ROWS)
        dvs_b = load_rows(grad_v, -size, packed + HALF, left, 0.0, ROWS)
        hks_a = load_rows(k_out, -size, packed, before, 0.0, ROWS)
        hks_b = load_rows(k_out, -size, packed + HALF, before, 0.0, ROWS)
        hvs_a = load_rows(v_out, -size, packed, before, 0.0, ROWS)
        hvs_b = load_rows(v_out, -size, packed + HALF, before, 0.0, ROWS)
        if ROPE:  # one more row: the states before are rotated by the angle before
            cs = load_rows(cos, -2 * HALF, i, before + 1, 0.0, ROWS + 1)
            ss = load_rows(sin, -2 * HALF, i, before + 1, 0.0, ROWS + 1)
        for r in tl.static_range(ROWS):
            d_ka, d_kb = dks_a[r].to(tl.float32), dks_b[r].to(tl.float32)
            h_ka, h_kb = hks_a[r].to(tl.float32), hks_b[r].to(tl.float32)
            if ROPE:
                d_ka, d_kb = d_ka * cs[r] + d_kb * ss[r], d_kb * cs[r] - d_ka * ss[r]
                h_ka, h_kb = h_ka * cs[r + 1] + h_kb * ss[r + 1], h_kb * cs[r + 1] - h_ka * ss[r + 1]
            h_ka = tl.where(before == r, first_ka, h_ka)
            h_kb = tl.where(before == r, first_kb, h_kb)
            h_va = tl.where(before == r, first_va, hvs_a[r].to(tl.float32))
            h_vb = tl.where(before == r, first_vb, hvs_b[r].to(tl.float32))
            keep_a, shut_a = gates(xs_a[r])
            keep_b, shut_b = gates(xs_b[r])
            d_ka, d_kb = d_ka + carry_ka, d_kb + carry_kb
            d_va, d_vb = dvs_a[r].to(tl.float32) + carry_va, dvs_b[r].to(tl.float32) + carry_vb
            carry_ka, carry_kb, carry_va, carry_vb = keep_a * d_ka, keep_b * d_kb, keep_a * d_va, keep_b * d_vb
            d_ka, d_kb, d_va, d_vb = shut_a * d_ka, shut_b * d_kb, shut_a * d_va, shut_b * d_vb
            store_pair_if(r < left, dk - r * size, packed, d_ka, d_kb, HALF)
            store_pair_if(r < left, dv - r * size, packed, d_va, d_vb, HALF)
            d_xa = d_ka * (h_ka - ks_a[r].to(tl.float32)) + d_va * (h_va - vs_a[r].to(tl.float32))
            d_xb = d_kb * (h_kb - ks_b[r].to(tl.float32)) + d_vb * (h_vb - vs_b[r].to(tl.float32))
            store_pair_if(r < left, d_logit - r * size, packed, keep_a * d_xa, keep_b * d_xb, HALF)
        logit -= ROWS * logit_t
        k -= ROWS * k_t
        v -= ROWS * v_t
        k_out -= ROWS * size
        v_out -= ROWS * size
        grad_k -= ROWS * size
        grad_v -= ROWS * size
        d_logit -= ROWS * size
        dk -= ROWS * size
        dv -= ROWS * size
        if ROPE:
            cos -= ROWS * 2 * HALF
            sin -= ROWS * 2 * HALF
    if first == 0:
        store_pair(d_initial + b * size, packed, carry_ka, carry_kb, HALF)
        store_pair(d_initial + (batch + b) * size, packed, carry_va, carry_vb, HALF)
