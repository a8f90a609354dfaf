"""Triton kernels of the recurrence's forward pass. What they compute and why they look so: `fused.py`."""

import triton
import triton.language as tl


@triton.jit
def load_pair(base, offset, HALF: tl.constexpr):
    """Channels i and i + HALF as float32."""
    return tl.load(base + offset).to(tl.float32), tl.load(base + offset + HALF).to(tl.float32)


@triton.jit
def store_pair(base, offset, a, b, HALF: tl.constexpr):
    tl.store(base + offset, a.to(base.dtype.element_ty))
    tl.store(base + offset + HALF, b.to(base.dtype.element_ty))


@triton.jit
def gates(x):
    """sigmoid(x) and sigmoid(-x), each accurate where it is small; exact 0 and 1 at infinity."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit
def forward_summary_kernel(
    logit, k, v, summary, length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t,
    HALF: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Per split of time, from a zero state: the product of its gates, its end state of k and of v.

    summary: [splits, 3, B, H, d] float32.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = first.to(tl.int64)
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
    one = tl.full((PAIRS,), 1.0, tl.float32)
    zero = tl.zeros((PAIRS,), tl.float32)
    gate_a, gate_b, k_a, k_bb, v_a, v_bb = one, one, zero, zero, zero, zero
    for _ in tl.range(first, last, num_stages=STAGES):
        x_a, x_b = load_pair(logit, head * logit_h + i, HALF)
        new_ka, new_kb = load_pair(k, head * k_h + i, HALF)
        new_va, new_vb = load_pair(v, head * v_h + i, HALF)
        keep_a, shut_a = gates(x_a)
        keep_b, shut_b = gates(x_b)
        gate_a, gate_b = gate_a * keep_a, gate_b * keep_b
        k_a, k_bb = keep_a * k_a + shut_a * new_ka, keep_b * k_bb + shut_b * new_kb
        v_a, v_bb = keep_a * v_a + shut_a * new_va, keep_b * v_bb + shut_b * new_vb
        logit += logit_t
        k += k_t
        v += v_t
    size = heads.to(tl.int64) * 2 * HALF
    at = ((split.to(tl.int64) * 3) * batch + b) * size + head * 2 * HALF + i
    store_pair(summary, at, gate_a, gate_b, HALF)
    store_pair(summary, at + batch * size, k_a, k_bb, HALF)
    store_pair(summary, at + 2 * batch * size, v_a, v_bb, HALF)


@triton.jit
def carry_kernel(summary, start, initial, splits, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """State that each split starts from: summary [splits, 3, size], initial [2, size] -> start [splits, 2, size]."""
    stream = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    state = tl.load(initial + tl.cast(stream, tl.int64) * size + at, mask=live, other=0.0)
    wide = tl.cast(size, tl.int64)
    last = tl.cast(splits - 1, tl.int64)
    summary += 3 * wide * last if REVERSE else 0
    start += 2 * wide * last if REVERSE else 0
    stride = -wide if REVERSE else wide
    for _ in range(splits):
        tl.store(start + stream * wide + at, state, mask=live)
        gate = tl.load(summary + at, mask=live, other=0.0)
        end = tl.load(summary + (1 + stream) * wide + at, mask=live, other=0.0)
        state = end + gate * state
        summary += 3 * stride
        start += 2 * stride


@triton.jit
def forward_kernel(
    logit, k, v, start, cos, sin, k_out, v_out, final, length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """start [splits, 2, B, H, d] -> k_out, v_out [B, T, H, d] and final [2, B, H, d]."""
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    last = tl.minimum(first + steps, length)
    t64 = first.to(tl.int64)
    size = heads.to(tl.int64) * 2 * HALF
    packed = head * 2 * HALF + i  # offset in a row [H, d]
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
    k_out += (b * length + t64) * size
    v_out += (b * length + t64) * size
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF
    begin = start + ((split.to(tl.int64) * 2) * batch + b) * size
    k_a, k_bb = load_pair(begin, packed, HALF)
    v_a, v_bb = load_pair(begin + batch * size, packed, HALF)
    for _ in tl.range(first, last, num_stages=STAGES):
        x_a, x_b = load_pair(logit, head * logit_h + i, HALF)
        new_ka, new_kb = load_pair(k, head * k_h + i, HALF)
        new_va, new_vb = load_pair(v, head * v_h + i, HALF)
        keep_a, shut_a = gates(x_a)
        keep_b, shut_b = gates(x_b)
        k_a, k_bb = keep_a * k_a + shut_a * new_ka, keep_b * k_bb + shut_b * new_kb
        v_a, v_bb = keep_a * v_a + shut_a * new_va, keep_b * v_bb + shut_b * new_vb
        if ROPE:
            c, s = tl.load(cos + i), tl.load(sin + i)
            store_pair(k_out, packed, k_a * c - k_bb * s, k_bb * c + k_a * s, HALF)
            cos += 2 * HALF
            sin += 2 * HALF
        else:
            store_pair(k_out, packed, k_a, k_bb, HALF)
        store_pair(v_out, packed, v_a, v_bb, HALF)
        logit += logit_t
        k += k_t
        v += v_t
        k_out += size
        v_out += size
    if last == length:
        store_pair(final + b * size, packed, k_a, k_bb, HALF)
        store_pair(final + (batch + b) * size, packed, v_a, v_bb, HALF)
