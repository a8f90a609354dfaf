"""Which implementation of an operator runs: decided from the device and the inputs, or forced by `RATPLUS_KERNELS`."""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

from ratplus.kernels.triton_support import unsupported

CHOICES = ("reference", "eager", "fused")
VARIABLE = "RATPLUS_KERNELS"
HAS_TRITON = find_spec("triton") is not None


def forced() -> str:
    """The implementation that the environment variable asks for; empty where it asks for none. Raises ValueError."""
    choice = os.environ.get(VARIABLE, "")
    if choice and choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!r} is unknown: use one of {', '.join(CHOICES)}, or unset it")
    return choice


def implementation(op: str, d_head: int, *tensors: Tensor) -> str:
    """Name of the implementation that runs `op` on these tensors: one of `CHOICES`.

    By default CPU tensors take the eager path and CUDA tensors the fused one, or the eager path with a warning where
    the Triton kernels don't support them. Raises ValueError for an unknown value of the environment variable, and for
    `fused` where it can't run.
    """
    return choose(
        op,
        tensors[0].device.type == "cuda",
        lambda: unsupported(d_head, *tensors) if HAS_TRITON else "Triton is not installed",
    )


def choose(op: str, on_cuda: bool, no_fused: Callable[[], str | None]) -> str:
    """As `implementation`, for operators whose fused path has other limits.

    Args:
        no_fused: says in one line why the fused path can't run, or None if it can; asked only where it would run.
    """
    choice = forced()
    if choice in ("reference", "eager"):
        return choice
    if not choice and not on_cuda:
        return "eager"
    reason = no_fused()
    if reason is None:
        return "fused"
    if choice:
        raise ValueError(f"{VARIABLE}=fused: {op} can't run as a Triton kernel: {reason}")
    warn(f"{op} runs on the slower eager path: {reason}")
    return "eager"


def warn(text: str) -> bool:
    """Say it once a place that calls an operator."""
    warnings.warn(text, stacklevel=5)
    return True


# Runs while a graph is traced, where a plain warning would break the graph. This is what the decorator
# torch.compiler.assume_constant_result does, without importing Dynamo (2 s) into every process that compiles nothing.
warn.__dict__["_dynamo_marked_constant"] = True
