"""Which implementation of an operator runs: decided from the device, or forced by `RATPLUS_KERNELS`."""

import os

import torch

CHOICES = ("reference", "eager", "fused")
VARIABLE = "RATPLUS_KERNELS"


def implementation(device: torch.device) -> str:
    """Name of the implementation that runs for tensors on `device`: one of `CHOICES`.

    Raises ValueError for an unknown value of the environment variable.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced and forced not in CHOICES:
        raise ValueError(f"{VARIABLE}={forced!r} is unknown: use one of {', '.join(CHOICES)}, or unset it")
    if forced == "fused":
        raise ValueError(f"{VARIABLE}=fused: the Triton kernels are not built yet; use reference or eager")
    return forced or "eager"
