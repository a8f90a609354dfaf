"""One decoding step as one Triton launch: recurrence step, rotation, cache writes and attention.

Positions are read on the device, so ragged batches need nothing special and a captured CUDA graph stays valid for
every later step. What is visible follows from counts (`layout.py`); nothing is ever moved in the cache. With few
sequences the slots of a head are split among programs and a second, tiny launch merges them in a fixed order.
Each cache entry is read once: the step is bound by memory (2 d_head bytes x 2 an entry in bf16). Query heads that share
keys go through one program, so that this holds for them too (`fused_group.py`).
"""

import torch
import triton
from torch import Tensor

from ratplus.kernels.decode.fused_group import group_step_kernel
from ratplus.kernels.decode.fused_kernels import combine_kernel, step_kernel
from ratplus.kernels.triton_support import interpreted, on_its_device, unit_stride

FILL = 264  # programs that fill the GPU: 2 a multiprocessor of an H100
MIN_SLOTS = 256  # slots a split, at least


def choose_splits(batch: int, heads: int, slots: int) -> int:
    """Programs a key head and sequence; depends on shapes only, so that a captured graph stays right.

    slots: those of a head.
    """
    return max(1, min(-(-FILL // (batch * heads)), slots // MIN_SLOTS))


def launch_options() -> dict:
    """Slots a tile and warps."""
    return {"BN": 16, "num_warps": 1} if interpreted() else {"BN": 64, "num_warps": 4}


def group_constants(group: int) -> dict:
    """What `group_step_kernel` is compiled for besides, with `group` query heads to a key head."""
    return {"GROUP": group, "ROWS": max(16, triton.next_power_of_2(group))}


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
    splits = choose_splits(batch, heads, slots // heads) if splits is None else splits
    part_acc = part_max = part_sum = out
    if splits > 1:
        part_acc = out.new_empty(batch, queries, splits, d_head, dtype=torch.float32)
        part_max, part_sum = (out.new_empty(batch, queries, splits, dtype=torch.float32) for _ in range(2))
    kernel, more = (step_kernel, {}) if queries == heads else (group_step_kernel, group_constants(queries // heads))
    kernel[(heads, splits, batch)](
        q, k, v, logit, keys, values, k_state if gated else q, v_state if gated else q, positions,
        dilation, window, sinks, positions if offsets is None else offsets, cos if rope else q, sin if rope else q,
        out, part_acc, part_max, part_sum, slots, slots // heads, heads, splits, d_head**-0.5,
        *(stride for x in (q, k, v, logit) for stride in x.stride()[:2]),
        D=d_head, GATED=gated, ROPE=rope, EQUAL=offsets is None, SPLIT=splits > 1, **launch_options(), **more,
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(batch * queries,)](part_acc, part_max, part_sum, out, splits, D=d_head, num_warps=1)
    return out
