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
def store_pair_if(condition, base, offset, a, b, HALF: tl.constexpr):
    mask = tl.full(offset.shape, 1, tl.int1) & condition
    tl.store(base + offset, a.to(base.dtype.element_ty), mask=mask)
    tl.store(base + offset + HALF, b.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(base, stride, offset, count, other, ROWS: tl.constexpr):
    """ROWS tiles, `stride` apart, as they are in memory; from the `count`-th on `other`, without touching memory."""
    everywhere = tl.full(offset.shape, 1, tl.int1)
    rows = ()
    for r in tl.static_range(ROWS):
        row = tl.load(base + r * stride + offset, mask=everywhere & (r < count), other=other)
        rows = rows + (row,)  # noqa: RUF005 (Triton compiles no unpacking)
    return rows


@triton.jit
def gates(x):
    """sigmoid(x) and sigmoid(-x), each accurate where it is small; exactly 0 and 1 at infinity.

    The reciprocal is a squared reciprocal square root: two instructions instead of the eight of a division, and a
    relative error below 5e-7. Its argument lies between 1 and 2, and it is exactly 1 for 1.
    """
    x = x.to(tl.float32)
    e = tl.exp2(tl.abs(x) * -1.4426950408889634)
    root = tl.rsqrt(1.0 + e)
    large = root * root
    small = e * large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit(do_not_specialize=["length", "steps", "batch", "heads"])
def forward_summary_kernel(
    logit, k, v, summary, length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t,
    HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Per split of time, from a zero state: the product of its gates, its end state of k and of v.

    It walks from the last step to the first and stops, after whole chunks, once every channel's product of gates is
    exactly 0: no earlier step can then reach the end of the split. With gates near 0.5 that takes about 150 steps.

    summary: [splits, 3, B, H, d] float32.
    """
    group, split, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pair = group * PAIRS + tl.arange(0, PAIRS)
    head, i = pair // HALF, pair % HALF
    first = split * steps
    count = tl.minimum(first + steps, length) - first
    t64 = (first + count - 1).to(tl.int64)
    logit += b * logit_b + t64 * logit_t
    k += b * k_b + t64 * k_t
    v += b * v_b + t64 * v_t
    x_at, k_at, v_at = head * logit_h + i, head * k_h + i, head * v_h + i
    gate_a = tl.full((PAIRS,), 1.0, tl.float32)
    gate_b = tl.full((PAIRS,), 1.0, tl.float32)
    k_one, k_two, v_one, v_two = (tl.zeros((PAIRS,), tl.float32),) * 4
    n0 = count * 0
    while n0 < count:
        for n in tl.range(n0, tl.minimum(n0 + CHUNK, count), ROWS, num_stages=STAGES):
            left = count - n
            xs_a = load_rows(logit, -logit_t, x_at, left, float("inf"), ROWS)  # an infinite logit holds the state
            xs_b = load_rows(logit, -logit_t, x_at + HALF, left, float("inf"), ROWS)
            ks_a = load_rows(k, -k_t, k_at, left, 0.0, ROWS)
            ks_b = load_rows(k, -k_t, k_at + HALF, left, 0.0, ROWS)
            vs_a = load_rows(v, -v_t, v_at, left, 0.0, ROWS)
            vs_b = load_rows(v, -v_t, v_at + HALF, left, 0.0, ROWS)
            for r in tl.static_range(ROWS):
                keep_a, shut_a = gates(xs_a[r])
                keep_b, shut_b = gates(xs_b[r])
                shut_a, shut_b = shut_a * gate_a, shut_b * gate_b
                k_one += shut_a * ks_a[r].to(tl.float32)
                k_two += shut_b * ks_b[r].to(tl.float32)
                v_one += shut_a * vs_a[r].to(tl.float32)
                v_two += shut_b * vs_b[r].to(tl.float32)
                gate_a, gate_b = gate_a * keep_a, gate_b * keep_b
            logit -= ROWS * logit_t
            k -= ROWS * k_t
            v -= ROWS * v_t
        n0 += CHUNK
        n0 = tl.where(tl.max(tl.maximum(gate_a, gate_b), axis=0) > 0, n0, count)
    size = tl.cast(heads, tl.int64) * 2 * HALF
    begin = summary + (split.to(tl.int64) * 3 * batch + b) * size
    packed = head * 2 * HALF + i
    store_pair(begin, packed, gate_a, gate_b, HALF)
    store_pair(begin + batch * size, packed, k_one, k_two, HALF)
    store_pair(begin + 2 * batch * size, packed, v_one, v_two, HALF)


@triton.jit(do_not_specialize=["splits"])
def carry_kernel(summary, start, initial, splits, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """State that each split starts from: summary [splits, 3, size], initial [2, size] -> start [splits, 2, size]."""
    stream = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    state = tl.load(initial + stream * size + at, mask=live, other=0.0)
    wide = tl.cast(size, tl.int64)
    stride = wide
    if REVERSE:
        last = tl.cast(splits - 1, tl.int64)
        summary += 3 * wide * last
        start += 2 * wide * last
        stride = -wide
    for _ in range(splits):
        tl.store(start + stream * wide + at, state, mask=live)
        gate = tl.load(summary + at, mask=live, other=0.0)
        end = tl.load(summary + (1 + stream) * wide + at, mask=live, other=0.0)
        state = end + gate * state
        summary += 3 * stride
        start += 2 * stride


@triton.jit(do_not_specialize=["length", "steps", "batch", "heads"])
def forward_kernel(
    logit, k, v, start, cos, sin, k_out, v_out, final, length, steps, batch, heads,
    logit_b, logit_h, logit_t, k_b, k_h, k_t, v_b, v_h, v_t, rope_b,
    ROPE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """start [splits, 2, B, H, d] -> k_out, v_out [B, T, H, d] and final [2, B, H, d]."""
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
    k_out += (b * length + t64) * size
    v_out += (b * length + t64) * size
    if ROPE:
        cos += b * rope_b + t64 * 2 * HALF
        sin += b * rope_b + t64 * 2 * HALF
    begin = start + (split.to(tl.int64) * 2 * batch + b) * size
    k_one, k_two = load_pair(begin, packed, HALF)
    v_one, v_two = load_pair(begin + batch * size, packed, HALF)
    for t in tl.range(first, last, ROWS, num_stages=STAGES):
        left = last - t
        # Every load of the block is issued before its first store: the compiler may not reorder the two.
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
            if ROPE:
                rotated_one = k_one * cs[r] - k_two * ss[r]
                rotated_two = k_two * cs[r] + k_one * ss[r]
                store_pair_if(r < left, k_out + r * size, packed, rotated_one, rotated_two, HALF)
            else:
                store_pair_if(r < left, k_out + r * size, packed, k_one, k_two, HALF)
            store_pair_if(r < left, v_out + r * size, packed, v_one, v_two, HALF)
        logit += ROWS * logit_t
        k += ROWS * k_t
        v += ROWS * v_t
        k_out += ROWS * size
        v_out += ROWS * size
        if ROPE:
            cos += ROWS * 2 * HALF
            sin += ROWS * 2 * HALF
    if last == length:
        store_pair(final + b * size, packed, k_one, k_two, HALF)
        store_pair(final + (batch + b) * size, packed, v_one, v_two, HALF)
