"""One decoding step as one Triton launch: recurrence step, rotation, cache writes and attention.

Positions are read on the device, so ragged batches need nothing special and a captured CUDA graph stays valid for
every later step. What is visible follows from counts (`layout.py`); nothing is ever moved in the cache. With few
sequences the slots of a head are split among programs. A second, tiny launch merges them in a fixed order, or (`Walk`)
whichever program of the head comes last: which one that is changes nothing in the order.
Each cache entry is read once: the step is bound by memory (2 d_head bytes x 2 an entry in bf16). Query heads that share
keys go through one program, so that this holds for them too (`fused_group.py`).
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

    slots: slots a tile. stages: tiles in flight. fill: programs to have at most; with fewer, slots are split, but into
        parts of no fewer than `least` slots.
    one_launch: whether the last split of a head to arrive merges them all, rather than a second launch.
    evict_first: whether what was read of the cache makes room first for other data in L2, since nobody reads it again.
    lanes: whether each thread keeps a softmax of its own slots until the walk is over, so that threads don't wait for
        each other at every tile; not used where query heads share keys.
    """

    slots: int
    num_warps: int
    stages: int
    fill: int
    one_launch: bool = False
    evict_first: bool = False
    lanes: bool = False
    least: int = 256


# For a query head with keys of its own, and for several that share keys. Products of float32 use no tensor cores:
# tiles larger than this spill registers.
WALKS = {"single": Walk(32, 2, 2, 528), "group": Walk(64, 4, 3, 264), "group, float32": Walk(16, 4, 2, 264)}


def walk_kind(group: int, dtype: torch.dtype) -> str:
    """The entry of WALKS for `group` query heads a key head and caches of that dtype."""
    if group == 1:
        return "single"
    return "group, float32" if dtype == torch.float32 else "group"


def choose_splits(kind: str, batch: int, heads: int, slots: int) -> int:
    """Programs a key head and sequence; depends on shapes only, so that a captured graph stays right.

    slots: those of a head.
    """
    # Rounded down: a few programs more than fit at a time would keep the others waiting for a second turn.
    return max(1, min(WALKS[kind].fill // (batch * heads), slots // WALKS[kind].least))


def constants(group: int, dtype: torch.dtype, d_head: int) -> dict:
    """What the step's kernel is compiled for, with `group` query heads to a key head and caches of that dtype."""
    walk = WALKS[walk_kind(group, dtype)]
    options: dict = {"BN": walk.slots, "num_warps": walk.num_warps}
    if interpreted():
        options = {"BN": 16, "num_warps": 1}
    options |= {"D": d_head, "ONE_LAUNCH": walk.one_launch, "EVICT": "evict_first" if walk.evict_first else ""}
    if group == 1:
        # Slots that the threads hold at a time: each thread 16 bytes of one.
        held = 32 * options["num_warps"] * 16 // (d_head * dtype.itemsize)
        lanes = min(max(1, held), options["BN"]) if walk.lanes else 1
        return options | {"STAGES": walk.stages, "LANES": lanes}
    power = triton.next_power_of_2(group)
    return options | {"GROUP": group, "ROWS": max(16, power), "HEADS": power, "num_stages": walk.stages}


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
    """See `decode_attention`; patterns as int32 [H_kv] on the device. Returns [B, H, d] in q's dtype."""
    batch, queries, d_head = q.shape
    heads, slots = k.shape[1], keys.shape[1]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    gated, rope = logit is not None, cos is not None
    logit = unit_stride(logit) if gated else q
    out = torch.empty(batch, queries, d_head, dtype=q.dtype, device=q.device)
    group = queries // heads
    if splits is None:
        splits = choose_splits(walk_kind(group, keys.dtype), batch, heads, slots // heads)
    options = constants(group, keys.dtype, d_head)
    part_acc = part_max = part_sum = counters = out
    if splits > 1:
        part_acc = out.new_empty(batch, queries, splits, d_head, dtype=torch.float32)
        part_max, part_sum = (out.new_empty(batch, queries, splits, dtype=torch.float32) for _ in range(2))
        if options["ONE_LAUNCH"]:
            counters = counters_of(keys, batch * heads)
    kernel = step_kernel if group == 1 else group_step_kernel
    kernel[(heads, splits, batch)](
        q, k, v, logit, keys, values, k_state if gated else q, v_state if gated else q, positions,
        dilation, window, sinks, positions if offsets is None else offsets, cos if rope else q, sin if rope else q,
        out, part_acc, part_max, part_sum, counters, slots, slots // heads, heads, splits, d_head**-0.5,
        *(stride for x in (q, k, v, logit) for stride in x.stride()[:2]),
        GATED=gated, ROPE=rope, EQUAL=offsets is None, SPLIT=splits > 1, **options,
    )  # fmt: skip
    if splits > 1 and not options["ONE_LAUNCH"]:
        combine_kernel[(batch * queries,)](part_acc, part_max, part_sum, out, splits, D=d_head, num_warps=1)
    return out
