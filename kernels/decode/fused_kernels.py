"""Triton kernels of one decoding step. What they do and why: `fused.py`. Layout of the cache: `layout.py`."""

import triton
import triton.language as tl


@triton.jit
def gated_mean(new, gate, old, GATED: tl.constexpr):
    """The recurrence's next value, float32: g old + (1 - g) new, g the sigmoid of `gate`. Without gates: new."""
    x = new.to(tl.float32)
    if GATED:
        gate = gate.to(tl.float32)
        # sigmoid(-x) rather than 1 - sigmoid(x): accurate where the gate is almost 1.
        e = tl.exp(-tl.abs(gate))
        large = 1.0 / (1.0 + e)
        shut = tl.where(gate >= 0, e * large, large)
        x = old + shut * (x - old)
    return x


@triton.jit
def state_step(state, new, logit, at, GATED: tl.constexpr):
    """`gated_mean` of what the pointers lead to."""
    x = tl.load(new)
    if GATED:
        return gated_mean(x, tl.load(logit), tl.load(state + at), GATED)
    return gated_mean(x, x, x, GATED)


@triton.jit
def load_token(k, v, logit, k_state, v_state, at, d, partner, mine, GATED: tl.constexpr):
    """What stepping one head's recurrence takes: token, gate and state of the key, the key's partner and the value.

    k, v, logit: pointers to this head; at: where its state begins; d, partner: channels, and the others of their
    rotated pairs; mine: whether this program steps it (else nothing is read).
    """
    key, other, value = tl.load(k + d, mine, 0.0), tl.load(k + partner, mine, 0.0), tl.load(v + d, mine, 0.0)
    if GATED:
        gate, other_gate = tl.load(logit + d, mine, 0.0), tl.load(logit + partner, mine, 0.0)
        k_old, other_old = tl.load(k_state + at + d, mine, 0.0), tl.load(k_state + at + partner, mine, 0.0)
        v_old = tl.load(v_state + at + d, mine, 0.0)
    else:
        gate, other_gate, k_old, other_old, v_old = key, key, key, key, key  # unused
    return key, gate, k_old, other, other_gate, other_old, value, v_old


@triton.jit
def take_token(
    token, k_state, v_state, keys, values, at, d, c, s, position, dilation, step, window, sinks, count,
    D: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Steps one head's recurrence and writes the token to every place of its cache; (key, value) as they are stored.

    token: what `load_token` gave; keys, values: pointers to this head; c, s: this position's rotation; step: the
    dilation, at least 1.
    """
    new, gate, k_old, new_other, other_gate, other_old, new_value, v_old = token
    key = gated_mean(new, gate, k_old, GATED)
    other = gated_mean(new_other, other_gate, other_old, GATED)
    value = gated_mean(new_value, gate, v_old, GATED)
    if GATED:
        tl.debug_barrier()  # the partners' state was read by threads that don't own the channel
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
def slots_of_split(split, splits, position, dilation, step, window, sinks, count, BN: tl.constexpr):
    """(begin, end) of the slots that a split walks along: whole tiles of BN, but for the end of what is in use."""
    used = slots_in_use(position, dilation, step, window, sinks, count)
    first = tl.where(sinks + window == 0, 1, 0)  # a ring of one slot holds the token itself, which nobody reads
    chunk = tl.cdiv(tl.cdiv(used - first, splits), BN) * BN
    begin = first + split * chunk
    return begin, tl.minimum(used, begin + chunk)


@triton.jit
def is_seen(u, position, window, sinks):
    """Whether slots u hold what the step at `position` sees; not the token itself, which comes from registers."""
    entry = u - sinks  # of the ring
    age = position % (window + 1) - entry  # 0: the slot of the token itself. One remainder, not one a slot
    age = tl.where(age < 0, age + window + 1, age)
    in_ring = (age > 0) & (position - age >= sinks)
    return tl.where(u < sinks, u < position, (entry > window) | in_ring)


@triton.jit
def is_last(counter, splits):
    """Counts this program in; whether it is the last of `splits`, which then sees what all of them have stored.

    The last one sets the counter back to 0, for the next launch.
    """
    tl.debug_barrier()  # the other threads' stores come before the one that counts
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == splits - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def merged_splits(part_acc, part_max, part_sum, row, splits, d, D: tl.constexpr):
    """The attention output [D] of one query head of one sequence (`row`) from its splits; split 0 is never empty.

    Sums run from split to split in registers, so their order depends neither on the number of warps nor on who calls.
    """
    many = tl.arange(0, 128)
    m = float("-inf")
    for first in range(0, splits, 128):
        inside = first + many < splits
        m = tl.maximum(m, tl.max(tl.load(part_max + row * splits + first + many, inside, float("-inf"))))
    acc = tl.zeros((D,), tl.float32)
    total = 0.0
    for first in range(0, splits, 16):
        for n in tl.static_range(16):  # these loads don't wait for each other
            inside = first + n < splits
            at = row * splits + first + n
            weight = tl.exp2(tl.load(part_max + at, inside, float("-inf")) - m)
            total += weight * tl.load(part_sum + at, inside, 0.0)
            acc += weight * tl.load(part_acc + at * D + d, inside, 0.0, cache_modifier=".cg")
    return acc / total


@triton.jit(do_not_specialize=["splits"])
def step_kernel(
    q, k, v, logit, keys, values, k_state, v_state, positions, dilations, windows, sinks_of, offsets, cos, sin,
    out, part_acc, part_max, part_sum, counters, slots, share, heads, splits, scale,
    q_b, q_h, k_b, k_h, v_b, v_h, logit_b, logit_h,
    D: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr, ROPE: tl.constexpr, EQUAL: tl.constexpr,
    SPLIT: tl.constexpr, EVICT: tl.constexpr, STAGES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program: one head of one sequence, and one split of the slots it sees.

    Split 0 also steps the recurrence and writes the token's key and value to the cache. It takes the token itself from
    registers; every split skips the slots written in this launch, so no program waits for another.

    LANES: softmaxes that a program keeps side by side, each over every LANES-th slot of a tile. With as many as the
    slots that its threads hold at a time, only threads that share a slot exchange anything until the walk is over.
    """
    h, split, b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    position = tl.load(positions + b).to(tl.int32)
    dilation, window, sinks = tl.load(dilations + h), tl.load(windows + h), tl.load(sinks_of + h)
    if EQUAL:
        own, count = h * share, share
    else:
        own = tl.load(offsets + h).to(tl.int64)
        count = (tl.load(offsets + h + 1).to(tl.int64) - own).to(tl.int32)
    keys += (b * slots + own) * D
    values += (b * slots + own) * D

    # What needs no position is asked for before what does, so that these latencies pass side by side.
    d = tl.arange(0, D)
    partner = (d + D // 2) % D  # the other channel of a rotated pair
    q += b * q_b + h * q_h
    query = tl.load(q + d).to(tl.float32)
    at = (b * heads + h) * D
    token = load_token(
        k + b * k_b + h * k_h, v + b * v_b + h * v_h, logit + b * logit_b + h * logit_h, k_state, v_state, at, d,
        partner, split == 0, GATED,
    )  # fmt: skip
    sign = tl.where(d < D // 2, -1.0, 1.0)
    if ROPE:
        other = tl.load(q + partner).to(tl.float32)
        angle = position.to(tl.int64) * D + d
        c, s = tl.load(cos + angle), tl.load(sin + angle) * sign
        query = query * c + other * s
    else:
        c, s = sign, sign  # unused
    # The query in the cache's precision, as on the other paths.
    query = query.to(keys.dtype.element_ty).to(tl.float32) * (scale * 1.4426950408889634)

    m = tl.full((LANES,), float("-inf"), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    acc = tl.zeros((LANES, D), tl.float32)
    step = tl.maximum(dilation, 1)
    if split == 0:
        key, value = take_token(
            token, k_state, v_state, keys, values, at, d, c, s, position, dilation, step, window, sinks, count,
            D, GATED, ROPE,
        )  # fmt: skip
        score = tl.sum(query * key.to(tl.float32))
        first = tl.arange(0, LANES) == 0
        m = tl.where(first, score, m)
        total = tl.where(first, 1.0, total)
        acc = tl.where(first[:, None], value.to(tl.float32)[None, :], acc)

    begin, end = slots_of_split(split, splits, position, dilation, step, window, sinks, count, BN)
    for u0 in tl.range(begin, end, BN, num_stages=STAGES):
        u = u0 + tl.arange(0, BN)
        visible = is_seen(u, position, window, sinks) & (u < end)
        rows = u.to(tl.int64)[:, None] * D + d[None, :]
        k_tile = tl.load(keys + rows, visible[:, None], 0.0, eviction_policy=EVICT).to(tl.float32)
        v_tile = tl.load(values + rows, visible[:, None], 0.0, eviction_policy=EVICT).to(tl.float32)
        scores = tl.where(visible, tl.sum(k_tile * query[None, :], axis=1), float("-inf"))
        scores = tl.reshape(scores, (BN // LANES, LANES))
        v_tile = tl.reshape(v_tile, (BN // LANES, LANES, D))
        m_new = tl.maximum(m, tl.max(scores, axis=0))
        anchor = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing visible yet: no -inf - (-inf)
        shrink = tl.exp2(m - anchor)
        weights = tl.exp2(scores - anchor[None, :])
        acc = acc * shrink[:, None] + tl.sum(weights[:, :, None] * v_tile, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        m = m_new
    m_all = tl.max(m, axis=0)
    shrink = tl.exp2(m - tl.where(m_all == float("-inf"), 0.0, m_all))
    total, acc, m = tl.sum(total * shrink, axis=0), tl.sum(acc * shrink[:, None], axis=0), m_all

    row = b * heads + h
    if SPLIT:
        tl.store(part_acc + (row * splits + split) * D + d, acc)
        tl.store(part_max + row * splits + split, m)
        tl.store(part_sum + row * splits + split, total)
        if is_last(counters + row, splits):
            merged = merged_splits(part_acc, part_max, part_sum, row, splits, d, D)
            tl.store(out + row * D + d, merged.to(out.dtype.element_ty))
    else:
        tl.store(out + row * D + d, (acc / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(part_acc, part_max, part_sum, out, splits, D: tl.constexpr):
    """Merges the splits of one query head of one sequence."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    merged = merged_splits(part_acc, part_max, part_sum, row, splits, d, D)
    tl.store(out + row * D + d, merged.to(out.dtype.element_ty))
