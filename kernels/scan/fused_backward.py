"""Triton kernels of the recurrence's backward pass. What they compute and why they look so: `fused.py`."""

import triton
import triton.language as tl

from ratplus.kernels.scan.fused_forward import gates, load_pair, store_pair


@triton.jit
def _load_unless(skip, pointers):
    """float32 values, or zeros without touching memory."""
    keep = tl.full(pointers.shape, 1, tl.int1) & (skip == 0)
    return tl.load(pointers, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def backward_summary_kernel(
    logit, grad_k, grad_v, cos, sin, summary, length, steps, batch, heads, logit_b, logit_h, logit_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Per split, last step first: the product of its gates, and what flows out of its first step from zero."""
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = (last - 1).to(tl.int64)
    size = heads.to(tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i
    logit += b * logit_b + t64 * logit_t
    grad_k += (b * length + t64) * size
    grad_v += (b * length + t64) * size
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF
    one = tl.full((PAIRS,), 1.0, tl.float32)
    zero = tl.zeros((PAIRS,), tl.float32)
    gate_a, gate_b, k_a, k_bb, v_a, v_bb = one, one, zero, zero, zero, zero
    for _ in tl.range(first, last, num_stages=STAGES):
        x_a, x_b = load_pair(logit, head * logit_h + i, HALF)
        d_ka, d_kb = load_pair(grad_k, packed, HALF)
        d_va, d_vb = load_pair(grad_v, packed, HALF)
        if ROPE:
            c, s = tl.load(cos + i), tl.load(sin + i)
            d_ka, d_kb = d_ka * c + d_kb * s, d_kb * c - d_ka * s
            cos -= 2 * HALF
            sin -= 2 * HALF
        keep_a, _shut_a = gates(x_a)
        keep_b, _shut_b = gates(x_b)
        gate_a, gate_b = gate_a * keep_a, gate_b * keep_b
        k_a, k_bb = keep_a * (d_ka + k_a), keep_b * (d_kb + k_bb)
        v_a, v_bb = keep_a * (d_va + v_a), keep_b * (d_vb + v_bb)
        logit -= logit_t
        grad_k -= size
        grad_v -= size
    at = ((split.to(tl.int64) * 3) * batch + b) * size + packed
    store_pair(summary, at, gate_a, gate_b, HALF)
    store_pair(summary, at + batch * size, k_a, k_bb, HALF)
    store_pair(summary, at + 2 * batch * size, v_a, v_bb, HALF)


@triton.jit
def backward_kernel(
    logit, k, v, initial, cos, sin, k_out, v_out, grad_k, grad_v, start, d_logit, dk, dv, d_initial,
    length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Last step first, `carry` = g_{t+1} dh_{t+1}:

    dh_t = (gradient of output t) + carry;  du = (1 - g) dh;  dlogit = g du (h_{t-1} - u), summed over k and v.
    h_{t-1} is the output one step earlier, un-rotated. The factor g keeps its rounding (bf16) from mattering.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = (last - 1).to(tl.int64)
    size = heads.to(tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
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
    begin = start + ((split.to(tl.int64) * 2) * batch + b) * size
    carry_ka, carry_kb = load_pair(begin, packed, HALF)
    carry_va, carry_vb = load_pair(begin + batch * size, packed, HALF)
    first_ka, first_kb = load_pair(initial + b * size, packed, HALF)
    first_va, first_vb = load_pair(initial + (batch + b) * size, packed, HALF)
    for t in tl.range(first, last, num_stages=STAGES):
        early = first + last - 1 - t == 0  # the very first token: what stands before it is `initial`
        x_a, x_b = load_pair(logit, head * logit_h + i, HALF)
        u_ka, u_kb = load_pair(k, head * k_h + i, HALF)
        u_va, u_vb = load_pair(v, head * v_h + i, HALF)
        d_ka, d_kb = load_pair(grad_k, packed, HALF)
        d_va, d_vb = load_pair(grad_v, packed, HALF)
        h_ka, h_kb = _load_unless(early, k_out + packed), _load_unless(early, k_out + packed + HALF)
        h_va, h_vb = _load_unless(early, v_out + packed), _load_unless(early, v_out + packed + HALF)
        if ROPE:
            c, s = _load_unless(early, cos - 2 * HALF + i), _load_unless(early, sin - 2 * HALF + i)
            h_ka, h_kb = h_ka * c + h_kb * s, h_kb * c - h_ka * s
        h_ka, h_kb = tl.where(early, first_ka, h_ka), tl.where(early, first_kb, h_kb)
        h_va, h_vb = tl.where(early, first_va, h_va), tl.where(early, first_vb, h_vb)
        if ROPE:
            c, s = tl.load(cos + i), tl.load(sin + i)
            d_ka, d_kb = d_ka * c + d_kb * s, d_kb * c - d_ka * s
            cos -= 2 * HALF
            sin -= 2 * HALF
        keep_a, shut_a = gates(x_a)
        keep_b, shut_b = gates(x_b)
        d_ka, d_kb, d_va, d_vb = d_ka + carry_ka, d_kb + carry_kb, d_va + carry_va, d_vb + carry_vb
        carry_ka, carry_kb, carry_va, carry_vb = keep_a * d_ka, keep_b * d_kb, keep_a * d_va, keep_b * d_vb
        d_ka, d_kb, d_va, d_vb = shut_a * d_ka, shut_b * d_kb, shut_a * d_va, shut_b * d_vb
        store_pair(dk, packed, d_ka, d_kb, HALF)
        store_pair(dv, packed, d_va, d_vb, HALF)
        d_a = keep_a * (d_ka * (h_ka - u_ka) + d_va * (h_va - u_va))
        d_b = keep_b * (d_kb * (h_kb - u_kb) + d_vb * (h_vb - u_vb))
        store_pair(d_logit, packed, d_a, d_b, HALF)
        logit -= logit_t
        k -= k_t
        v -= v_t
        k_out -= size
        v_out -= size
        grad_k -= size
        grad_v -= size
        d_logit -= size
        dk -= size
        dv -= size
    if first == 0:
        store_pair(d_initial + b * size, packed, carry_ka, carry_kb, HALF)
        store_pair(d_initial + (batch + b) * size, packed, carry_va, carry_vb, HALF)
