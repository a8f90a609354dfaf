"""What the Triton kernels accept, and whether they run compiled or in the interpreter."""

import os
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

D_HEADS = (16, 32, 64, 128, 256)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_FLOAT32_HEAD = 128  # a program of 256 float32 channels needs more registers and shared memory than there are


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter (on the CPU, for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unsupported_kind(d_head: int, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels can't take tensors of that head size and dtype, on whatever device, or None."""
    if d_head not in D_HEADS:
        return f"d_head is {d_head}; the Triton kernels take {', '.join(map(str, D_HEADS))}"
    if dtype not in DTYPES:
        return f"the dtype is {dtype}; the Triton kernels take float32, float16 and bfloat16"
    if dtype == torch.float32 and d_head > MAX_FLOAT32_HEAD:
        return f"d_head is {d_head} in float32; the Triton kernels take float32 up to {MAX_FLOAT32_HEAD}"
    return None


def unsupported(d_head: int, *tensors: Tensor) -> str | None:
    """Why the Triton kernels can't take these tensors, or None."""
    for x in tensors:
        if (reason := unsupported_kind(d_head, x.dtype)) is not None:
            return reason
        if x.device.type != "cuda" and not interpreted():
            return f"the device is {x.device}; the Triton kernels need CUDA (or TRITON_INTERPRET=1 on the CPU)"
    return None


def unit_stride(x: Tensor) -> Tensor:
    """x itself if its last dimension is contiguous (views of a projection are), else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_its_device(function: Callable) -> Callable:
    """Runs `function` with the device of its first argument as the current one: Triton launches on that."""

    @wraps(function)
    def wrapped(first: Tensor, *args, **kwargs):
        with torch.cuda.device_of(first):
            return function(first, *args, **kwargs)

    return wrapped
