"""One decoding step as one Triton launch: recurrence step, rotation, cache writes and attention.

Positions are read on the device, so ragged batches need nothing special and a captured CUDA graph stays valid for
every later step. What is visible follows from counts (`layout.py`); nothing is ever moved in the cache. With few
sequences the slots of a head are split among programs. Whichever of them comes last merges their parts, in an order
that doesn't depend on which one it is. Each cache entry is read once: the step is bound by memory (2 d_head bytes x 2
an entry in bf16). Query heads that share keys go through one program, so that this holds for them too
(`fused_group.py`); their splits are merged by a second, tiny launch, which was faster there.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ratplus.kernels.decode.fused_group import group_step_kernel
from ratplus.kernels.decode.fused_kernels import combine_kernel, step_kernel
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride


@dataclass(frozen=True)
class Walk:
    """How programs walk along the slots of a head.

    slots: slots a tile. stages: tiles in flight; with one, loads go to registers. fill: programs to have at most; with
        fewer, slots are split, but into parts of no fewer than `least` slots.
    evict_first: whether what was read of the cache makes room first for other data in L2, since nobody reads it again.
        Only loads to registers carry such a hint, so only an entry for keys of its own with one stage has a use for it.
    """

    slots: int
    num_warps: int
    stages: int
    fill: int
    least: int
    evict_first: bool = False


# "single": a query head with keys of its own; "short parts": where its slots are split, into parts of at most
# SHORT_PART. "group": several query heads that share keys. Products of float32 use no tensor cores: tiles larger than
# this spill registers.
WALKS = {
    "single": Walk(32, 2, 2, 1320, 64),
    "single, short parts": Walk(32, 2, 1, 1320, 64, evict_first=True),
    "group": Walk(64, 4, 3, 264, 256),
    "group, float32": Walk(16, 4, 2, 264, 256),
}
# On an H100, parts of 400 slots are read faster by the second entry of WALKS, parts of 6,394 by the first one.
SHORT_PART = 2048


def choose(
    group: int, dtype: torch.dtype, batch: int, heads: int, slots: int, splits: int | None = None
) -> tuple[str, int]:
    """(entry of WALKS, programs a key head and sequence); depends on shapes only, so that a captured graph stays right.

    group: query heads a key head; heads: key heads; slots: those of a head; splits: None for what the entry says.
    """

    def of(kind: str) -> int:
        # Rounded down: a few programs more than fit at a time would keep the others waiting for a second turn.
        walk = WALKS[kind]
        return splits or max(1, min(walk.fill // (batch * heads), slots // walk.least))

    if group > 1:
        kind = "group, float32" if dtype == torch.float32 else "group"
    else:
        kind = "single, short parts"
        if of(kind) == 1 or slots > of(kind) * SHORT_PART:
            kind = "single"
    return kind, of(kind)


def constants(kind: str, group: int, dtype: torch.dtype, d_head: int) -> dict:
    """What the step's kernel is compiled for.

    kind: entry of WALKS; group: query heads a key head; dtype: of the caches.
    """
    walk = WALKS[kind]
    options: dict = {"BN": walk.slots, "num_warps": walk.num_warps}
    if interpreted():
        options = {"BN": 16, "num_warps": 1}
    options |= {"D": d_head}
    if group == 1:
        options |= {"EVICT": "evict_first" if walk.evict_first else ""}
        # Slots that the threads hold at a time: each thread 16 bytes of one.
        held = 32 * options["num_warps"] * 16 // (d_head * dtype.itemsize)
        return options | {"STAGES": walk.stages, "LANES": min(max(1, held), options["BN"])}
    return options | {"GROUP": group, "ROWS": max(16, triton.next_power_of_2(group)), "num_stages": walk.stages}


# By device, address of a cache and size. Whoever steps a cache twice at a time overwrites its entries anyway, so a
# counter that belongs to the cache is never used by two launches at once, whatever streams and graphs they come from. A
# launch leaves it at 0, so memory that becomes another cache finds it as it must be. Nothing is ever dropped, since
# captured graphs read it where it lies: 4 bytes a sequence and key head.
_counters: dict[tuple[torch.device, int, int], Tensor] = {}


def counters_of(cache: Tensor, count: int) -> Tensor:
    """int32 [count], 0 between launches: how many splits of each sequence's key head have stored their part."""
    key = (cache.device, cache.data_ptr(), count)
    if key not in _counters:
        fresh = torch.zeros(count, dtype=torch.int32, device=cache.device)
        if cache.is_cuda and torch.cuda.is_current_stream_capturing():
            return fresh  # the zeros are written by the graph alone, at each replay
        _counters[key] = fresh
    return _counters[key]


@on_its_device
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit: Tensor | None,
    keys: Tensor,
    values: Tensor,
    k_state: Tensor | None,
    v_state: Tensor | None,
    positions: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    offsets: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    splits: int | None = None,
) -> Tensor:
    """See `decode_attention`; patterns as int32 [H_kv] on the device. Returns [B, H, d] in q's dtype.

    splits: programs a key head and sequence; None for as many as `choose` says.
    """
    batch, queries, d_head = q.shape
    heads, slots = k.shape[1], keys.shape[1]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    gated, rope = logit is not None, cos is not None
    logit = unit_stride(logit) if gated else q
    out = torch.empty(batch, queries, d_head, dtype=q.dtype, device=q.device)
    group = queries // heads
    kind, splits = choose(group, keys.dtype, batch, heads, slots // heads, splits)
    part_acc = part_max = part_sum = counters = out
    if splits > 1:
        part_acc = out.new_empty(batch, queries, splits, d_head, dtype=torch.float32)
        part_max, part_sum = (out.new_empty(batch, queries, splits, dtype=torch.float32) for _ in range(2))
        if group == 1:
            counters = counters_of(keys, batch * heads)
    kernel, counted = (step_kernel, (counters,)) if group == 1 else (group_step_kernel, ())
    kernel[(heads, splits, batch)](
        q, k, v, logit, keys, values, k_state if gated else q, v_state if gated else q, positions,
        dilation, window, sinks, positions if offsets is None else offsets, cos if rope else q, sin if rope else q,
        out, part_acc, part_max, part_sum, *counted, slots, slots // heads, heads, splits, d_head**-0.5,
        *(stride for x in (q, k, v, logit) for stride in x.stride()[:2]),
        GATED=gated, ROPE=rope, EQUAL=offsets is None, SPLIT=splits > 1, **constants(kind, group, keys.dtype, d_head),
    )  # fmt: skip
    if splits > 1 and group > 1:
        combine_kernel[(batch * queries,)](part_acc, part_max, part_sum, out, splits, D=d_head, num_warps=1)
    return out
