"""Triton kernels of one decoding step. What they do and why: `fused.py`. Layout of the cache: `layout.py`."""

import triton
import triton.language as tl


@triton.jit
def state_step(state, new, logit, at, GATED: tl.constexpr):
    """The recurrence's next value, float32: g state + (1 - g) new. Without gates: new."""
    x = tl.load(new).to(tl.float32)
    if GATED:
        gate = tl.load(logit).to(tl.float32)
        # sigmoid(-x) rather than 1 - sigmoid(x): accurate where the gate is almost 1.
        e = tl.exp(-tl.abs(gate))
        large = 1.0 / (1.0 + e)
        shut = tl.where(gate >= 0, e * large, large)
        old = tl.load(state + at)
        x = old + shut * (x - old)
    return x


@triton.jit
def take_token(
    k, v, logit, k_state, v_state, keys, values, at, d, partner, c, s, position, dilation, step, window, sinks, count,
    D: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Steps one head's recurrence and writes the token to every place of its cache; (key, value) as they are stored.

    k, v, logit, keys, values: pointers to this head; at: where its state begins; d, partner: channels, and the others
    of their rotated pairs; c, s: this position's rotation; step: the dilation, at least 1.
    """
    key = state_step(k_state + at, k + d, logit + d, d, GATED)
    other = state_step(k_state + at, k + partner, logit + partner, partner, GATED)
    value = state_step(v_state + at, v + d, logit + d, d, GATED)
    if GATED:
        tl.debug_barrier()  # `other` was read by threads that don't own the channel
        tl.store(k_state + at + d, key)
        tl.store(v_state + at + d, value)
    if ROPE:
        key = key * c + other * s
    key, value = key.to(keys.dtype.element_ty), value.to(values.dtype.element_ty)
    ring = sinks + position % (window + 1)
    tl.store(keys + ring.to(tl.int64) * D + d, key)
    tl.store(values + ring.to(tl.int64) * D + d, value)
    if position < sinks:
        tl.store(keys + position.to(tl.int64) * D + d, key)
        tl.store(values + position.to(tl.int64) * D + d, value)
    slot = sinks + window + 1 + (position + 1) // step - 1 - sinks // step
    if (dilation >= 1) & ((position + 1) % step == 0) & (position >= sinks) & (slot < count):
        tl.store(keys + slot.to(tl.int64) * D + d, key)
        tl.store(values + slot.to(tl.int64) * D + d, value)
    return key, value


@triton.jit
def slots_in_use(position, dilation, step, window, sinks, count):
    """How many slots hold what the step at `position` may see."""
    dilated = tl.maximum(tl.maximum(position - window, 0) // step - sinks // step, 0)
    return tl.minimum(sinks + window + 1 + tl.where(dilation >= 1, dilated, 0), count)


@triton.jit
def slots_of_split(split, splits, position, dilation, step, window, sinks, count):
    """(begin, end) of the slots that a split walks along."""
    used = slots_in_use(position, dilation, step, window, sinks, count)
    first = tl.where(sinks + window == 0, 1, 0)  # a ring of one slot holds the token itself, which nobody reads
    chunk = tl.cdiv(used - first, splits)
    begin = first + split * chunk
    return begin, tl.minimum(used, begin + chunk)


@triton.jit
def is_seen(u, position, window, sinks):
    """Whether slots u hold what the step at `position` sees; not the token itself, which comes from registers."""
    entry = u - sinks  # of the ring
    age = (position - entry + window + 1) % (window + 1)  # 0: the slot of the token itself
    in_ring = (age > 0) & (position - age >= sinks)
    return tl.where(u < sinks, u < position, (entry > window) | in_ring)


@triton.jit(do_not_specialize=["splits"])
def step_kernel(
    q, k, v, logit, keys, values, k_state, v_state, positions, dilations, windows, sinks_of, offsets, cos, sin,
    out, part_acc, part_max, part_sum, slots, share, heads, splits, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, logit_b, logit_h,
    D: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr, EQUAL: tl.constexpr,
    SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: one head of one sequence, and one split of the slots it sees.

    Split 0 also steps the recurrence and writes the token's key and value to the cache. It takes the token itself from
    registers; every split skips the slots written in this launch, so no program waits for another.
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
    q += b * q_b + h * q_h
    query = tl.load(q + d).to(tl.float32)
    if ROPE:
        query = query * c + tl.load(q + partner).to(tl.float32) * s
    # The query in the cache's precision, as on the other paths.
    query = query.to(keys.dtype.element_ty).to(tl.float32) * (scale * 1.4426950408889634)

    m = float("-inf")
    total = 0.0
    acc = tl.zeros((D,), tl.float32)
    step = tl.maximum(dilation, 1)
    if split == 0:
        at = (b * heads + h) * D
        k += b * k_b + h * k_h
        v += b * v_b + h * v_h
        logit += b * logit_b + h * logit_h
        key, value = take_token(
            k, v, logit, k_state, v_state, keys, values, at, d, partner, c, s, position, dilation, step, window, sinks,
            count, D, GATED, ROPE,
        )  # fmt: skip
        m = tl.sum(query * key.to(tl.float32))
        total = 1.0
        acc = value.to(tl.float32)

    begin, end = slots_of_split(split, splits, position, dilation, step, window, sinks, count)
    for u0 in tl.range(begin, end, BN, num_stages=STAGES):
        u = u0 + tl.arange(0, BN)
        visible = is_seen(u, position, window, sinks) & (u < end)
        rows = u.to(tl.int64)[:, None] * D + d[None, :]
        k_tile = tl.load(keys + rows, mask=visible[:, None], other=0.0).to(tl.float32)
        v_tile = tl.load(values + rows, mask=visible[:, None], other=0.0).to(tl.float32)
        scores = tl.where(visible, tl.sum(k_tile * query[None, :], axis=1), float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, axis=0))
        anchor = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing visible yet: no -inf - (-inf)
        weights = tl.exp2(scores - anchor)
        shrink = tl.exp2(m - anchor)
        acc = acc * shrink + tl.sum(weights[:, None] * v_tile, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        m = m_new

    row = b * heads + h
    if SPLIT:
        tl.store(part_acc + (row * splits + split) * D + d, acc)
        tl.store(part_max + row * splits + split, m)
        tl.store(part_sum + row * splits + split, total)
    else:
        tl.store(out + row * D + d, (acc / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(part_acc, part_max, part_sum, out, splits, D: tl.constexpr):
    """Merges the splits of one head of one sequence, always in the same order. Split 0 is never empty."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    m = tl.load(part_max + row * splits)
    total = tl.load(part_sum + row * splits)
    acc = tl.load(part_acc + row * splits * D + d)
    for split in range(1, splits):
        at = row * splits + split
        other = tl.load(part_max + at)
        m_new = tl.maximum(m, other)
        shrink, weight = tl.exp2(m - m_new), tl.exp2(other - m_new)
        acc = acc * shrink + weight * tl.load(part_acc + at * D + d)
        total = total * shrink + weight * tl.load(part_sum + at)
        m = m_new
    tl.store(out + row * D + d, (acc / total).to(out.dtype.element_ty))
