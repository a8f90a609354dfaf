"""Tiles that kernels read through descriptors, by the tensor memory accelerator (TMA).

Of queries for dK and dV: descriptors that the host makes. Of the far list for the forward pass: those that each program
makes, since the dilation is known on the device alone.
"""

from contextvars import copy_context

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ratplus.kernels.triton_support import interpreted

ALIGNMENT = 16  # bytes: of addresses, and of all strides but the last, which is one element
NONE = (None,) * 4


def query_boxes(
    q: Tensor, d_out: Tensor, lse: Tensor, delta: Tensor, queries: int
) -> tuple[TensorDescriptor | None, ...]:
    """Descriptors of tiles of `queries` rows; `NONE` where these tensors, or this device, can't have them.

    q [B, H, T, d]; d_out [B, T, H, d] contiguous, described as [B, H, T, d]; lse, delta [B, H, T] float32 contiguous,
    as [B * H, T]. Rows past the end of the sequence are read as zeros.
    """
    batch, heads, length, d_head = q.shape
    d_out = d_out.transpose(1, 2)
    strides = [taken for x in (q, d_out) if (taken := _strides(x)) is not None]
    row_bytes = length * lse.element_size()
    possible = q.numel() > 0 and len(strides) == 2 and row_bytes % ALIGNMENT == 0
    addresses = [x.data_ptr() % ALIGNMENT == 0 for x in (q, d_out, lse, delta)]
    if not (possible and all(addresses) and _has_tma(q.device)):
        return NONE
    tiles = [TensorDescriptor(x, list(x.shape), s, [1, 1, queries, d_head]) for x, s in zip((q, d_out), strides)]
    rows = [TensorDescriptor(x, [batch * heads, length], [length, 1], [1, queries]) for x in (lse, delta)]
    return (*tiles, *rows)


def lists_have_boxes(k: Tensor, v: Tensor) -> bool:
    """Whether far lists of k, v [B, H, T, d] can be read through descriptors."""
    taken = k.numel() > 0 and all(_strides(x) is not None and x.data_ptr() % ALIGNMENT == 0 for x in (k, v))
    return taken and _has_tma(k.device)


def launch_with_memory(launch, device: torch.device, *arguments, **constants) -> None:
    """launch(...) of a kernel that makes descriptors, with memory for these.

    Where Triton gets memory from is a variable of the context; one of its own leaves the caller's as it was.
    """

    def allocate(size: int, alignment: int, stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)

    def run() -> None:
        triton.set_allocator(allocate)
        launch(*arguments, **constants)

    copy_context().run(run)


def _strides(x: Tensor) -> list[int] | None:
    """Strides that a descriptor takes, or None. Those of a dimension of size 1 are never used."""
    unused = x.shape[-1]  # a multiple of 16 elements, as every head size is
    strides = [stride if size > 1 else unused for stride, size in zip(x.stride()[:-1], x.shape[:-1])]
    if any(stride <= 0 or stride * x.element_size() % ALIGNMENT for stride in strides):
        return None
    return [*strides, 1]


def _has_tma(device: torch.device) -> bool:
    return interpreted() or torch.cuda.get_device_capability(device)[0] >= 9
