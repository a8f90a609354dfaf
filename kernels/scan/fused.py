"""The gated recurrence as Triton kernels: sigmoid, recurrence on k and v, and rotation in one pass over memory.

A program walks along time with the states of a few heads in registers: one warp, no shuffles. It holds channel i and
channel i + d/2 of a head in two equal tiles, so the rotation needs no exchange between threads. When batch x heads
doesn't fill the GPU, time is cut into splits: (1) each split's gate product and end state from zero, (2) a tiny scan
over the splits that yields the state each of them starts from, (3) the pass itself. The backward pass does the same
with time reversed.

Bytes per gate channel, bf16, k and v together: forward 10 (6 read, 4 written), backward 20. Splits read at most 6 more;
as a summary stops where its gates have forgotten everything, it is about 150 steps a split with gates near 0.5.
All offsets that grow with time or batch are 64 bit.
"""

from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor

from ratplus.kernels.scan.fused_backward import backward_kernel, backward_summary_kernel
from ratplus.kernels.scan.fused_forward import carry_kernel, forward_kernel, forward_summary_kernel
from ratplus.kernels.triton_support import on_its_device, unit_stride

PAIRS = 128  # channel pairs a program, at most: 4 a thread, loads of 8 bytes in bf16
MIN_STEPS = 128  # time steps a split, at least
CARRY_BLOCK = 256
CHUNK = 32  # time steps after which a summary kernel looks whether every product of gates is 0


@dataclass(frozen=True)
class Walk:
    """How a kernel walks along time.

    rows: time steps whose loads are issued together. stages: blocks of rows in flight; 1 loads without a pipeline.
    fill: programs that fill the GPU; with fewer, time is cut into splits.
    """

    rows: int
    stages: int
    fill: int

    def constants(self) -> dict:
        """What a kernel is compiled for."""
        return {"ROWS": self.rows, "STAGES": self.stages}


# The fastest on an H100 (docs/kernels.md). More rows or stages of the backward kernel take a minute to compile.
WALKS = {
    "forward": Walk(rows=4, stages=3, fill=512),
    "forward summary": Walk(rows=2, stages=3, fill=512),
    "backward": Walk(rows=2, stages=3, fill=512),
    "backward summary": Walk(rows=2, stages=3, fill=512),
}


def pairs_per_program(heads: int, d_head: int) -> int:
    """Channel pairs of as many heads as fit and divide the number of heads: no program needs a mask."""
    group = 1
    while heads % (2 * group) == 0 and 2 * group * d_head // 2 <= PAIRS:
        group *= 2
    return group * d_head // 2


def choose_splits(kind: str, batch: int, heads: int, length: int, d_head: int) -> int:
    """How many pieces time is cut into for "forward" or "backward"; 1 where batch x heads fills the GPU."""
    programs = batch * heads * (d_head // 2) // pairs_per_program(heads, d_head)
    return max(1, min(-(-WALKS[kind].fill // programs), length // MIN_STEPS))


def constants(kind: str, heads: int, d_head: int) -> dict:
    """What the kernel of that name in WALKS is compiled for."""
    return {
        "HALF": d_head // 2,
        "PAIRS": pairs_per_program(heads, d_head),
        **WALKS[kind].constants(),
        **({"CHUNK": CHUNK} if kind.endswith("summary") else {}),
        "num_warps": 1,
    }


def _launch(kind: str, k: Tensor, splits: int | None) -> tuple[int, int, tuple[int, int, int]]:
    """(splits, steps a split, grid) for inputs shaped like k [B, H, T, d]."""
    batch, heads, length, d_head = k.shape
    splits = choose_splits(kind, batch, heads, length, d_head) if splits is None else min(splits, length)
    steps = -(-length // splits)
    splits = -(-length // steps)  # no empty split
    return splits, steps, (heads * (d_head // 2) // pairs_per_program(heads, d_head), splits, batch)


def _strides(*tensors: Tensor) -> list[int]:
    """(batch, head, time) strides of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def _tables(cos: Tensor | None, sin: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Contiguous float32 tables [T, d] or [B, 1, T, d] and their batch stride; without rotation, unused tensors."""
    if cos is None:
        return like, like, 0
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    return cos, sin, cos.stride(0) if cos.dim() == 4 else 0


def _carry(summary: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """summary [splits, 3, ...], initial [2, ...] -> the state that each split starts from [splits, 2, ...]."""
    splits, size = summary.shape[0], initial[0].numel()
    start = summary.new_empty(splits, *initial.shape)
    grid = (triton.cdiv(size, CARRY_BLOCK), 2)
    carry_kernel[grid](summary, start, initial, splits, size, REVERSE=reverse, BLOCK=CARRY_BLOCK, num_warps=1)
    return start


def _pair_state(k: Tensor, k0: Tensor | None, v0: Tensor | None) -> Tensor:
    """[2, B, H, d] float32: the two states, or zeros."""
    if k0 is None:
        return k.new_zeros(2, k.shape[0], k.shape[1], k.shape[3], dtype=torch.float32)
    return torch.stack((k0, v0)).float()


def _split_starts(
    logit: Tensor, k: Tensor, v: Tensor, initial: Tensor, splits: int, steps: int, grid: tuple[int, int, int]
) -> Tensor:
    """The states that each split starts from, [splits, 2, B, H, d]."""
    if splits == 1:
        return initial
    batch, heads, length, d_head = k.shape
    summary = initial.new_empty(splits, 3, batch, heads, d_head)
    forward_summary_kernel[grid](
        logit, k, v, summary, length, steps, batch, heads, *_strides(logit, k, v),
        **constants("forward summary", heads, d_head),
    )  # fmt: skip
    return _carry(summary, initial, reverse=False)


@on_its_device
def forward(
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    k0: Tensor | None,
    v0: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `eager.forward`. splits: pieces of time (None: as many as the GPU needs)."""
    batch, heads, length, d_head = k.shape
    logit, k, v = (unit_stride(x) for x in (logit, k, v))
    splits, steps, grid = _launch("forward", k, splits)
    cos, sin, rope_stride, rope = *_tables(cos, sin, k), cos is not None
    k_tilde, v_tilde = (k.new_empty(batch, length, heads, d_head) for _ in range(2))
    initial = _pair_state(k, k0, v0)
    final = torch.empty_like(initial)
    start = _split_starts(logit, k, v, initial, splits, steps, grid)
    forward_kernel[grid](
        logit, k, v, start, cos, sin, k_tilde, v_tilde, final, length, steps, batch, heads,
        *_strides(logit, k, v), rope_stride, ROPE=rope, **constants("forward", heads, d_head),
    )  # fmt: skip
    return k_tilde.transpose(1, 2), v_tilde.transpose(1, 2), final[0].clone(), final[1].clone()


@on_its_device
def backward(
    grad_k: Tensor,
    grad_v: Tensor,
    grad_k_state: Tensor,
    grad_v_state: Tensor,
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    k0: Tensor | None,
    v0: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    k_tilde: Tensor,
    v_tilde: Tensor,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `eager.backward`."""
    batch, heads, length, d_head = k.shape
    logit, k, v = (unit_stride(x) for x in (logit, k, v))
    # In memory order [B, T, H, d]; gradients of a sum arrive with stride 0 and are written out here.
    time_major = partial(torch.Tensor.transpose, dim0=1, dim1=2)
    grad_k, grad_v, k_tilde, v_tilde = (time_major(x).contiguous() for x in (grad_k, grad_v, k_tilde, v_tilde))
    splits, steps, grid = _launch("backward", k, splits)
    cos, sin, rope_stride, rope = *_tables(cos, sin, k), cos is not None
    d_logit = logit.new_empty(batch, length, heads, d_head)
    dk, dv = (k.new_empty(batch, length, heads, d_head) for _ in range(2))
    initial = _pair_state(k, k0, v0)
    d_initial = torch.empty_like(initial)
    start = _pair_state(k, grad_k_state, grad_v_state)
    if splits > 1:
        summary = initial.new_empty(splits, 3, batch, heads, d_head)
        backward_summary_kernel[grid](
            logit, grad_k, grad_v, cos, sin, summary, length, steps, batch, heads,
            *_strides(logit), rope_stride, ROPE=rope, **constants("backward summary", heads, d_head),
        )  # fmt: skip
        start = _carry(summary, start, reverse=True)
    backward_kernel[grid](
        logit, k, v, initial, cos, sin, k_tilde, v_tilde, grad_k, grad_v, start, d_logit, dk, dv, d_initial,
        length, steps, batch, heads, *_strides(logit, k, v), rope_stride, ROPE=rope,
        **constants("backward", heads, d_head),
    )  # fmt: skip
    return *(time_major(x) for x in (d_logit, dk, dv)), d_initial[0].clone(), d_initial[1].clone()
