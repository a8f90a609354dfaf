"""Linear attention on CUDA: the Triton kernels of fla-core (extra `peers`), which is imported when they first run.

Theirs take tensors [B, T, H, d] and scale q by d_k^-0.5 unless they are told otherwise; ours take [B, H, T, d] and
scale nothing.
"""

import re
from importlib.util import find_spec

import torch
from torch import Tensor

from ratplus.kernels.linear_attention.reference import state_type

HAS_FLA = find_spec("fla") is not None
# From the first to before the second, Triton compiles fla-core's backward wrongly for Hopper, and fla-core raises
# RuntimeError instead: its issue 640.
_WRONG_TRITON = (3, 4, 0), (3, 7, 1)


def no_gradients_reason(op: str, d_k: int, v: Tensor) -> str | None:
    """Why fla-core's kernels have no backward pass for keys of d_k channels and such values, or None if they have."""
    # In chunk_bwd_dv, which only the kernels of `ssd` call.
    if op == "ssd" and v.dtype.itemsize == 2 and (d_k % 2 or v.shape[3] % 2):
        return f"d_k={d_k}, d_v={v.shape[3]}; fla-core's backward pass takes even ones in {v.dtype}"
    if torch.cuda.get_device_capability(v.device)[0] != 9:
        return None
    import triton

    first, mended = _WRONG_TRITON
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", triton.__version__)
    if numbers and first <= tuple(map(int, numbers.groups())) < mended:
        return (
            f"Triton {triton.__version__} compiles fla-core's backward pass wrongly for this GPU (Hopper); "
            "Triton 3.7.1 and later do not"
        )
    return None


def fused(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None = None, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd` where beta is None, else `gated_delta_rule`: arguments and results as there."""
    heads = v.shape[1]
    # One head of q and k that all share is repeated: theirs has a head of keys for every head of values.
    tensors = {"q": q.expand(-1, heads, -1, -1), "k": k.expand(-1, heads, -1, -1), "v": v, "g": log_decay.float()}
    if beta is not None:
        tensors["beta"] = beta
    given = {name: x.transpose(1, 2).contiguous() for name, x in tensors.items()}
    state = None if initial is None else initial.to(state_type(v.dtype))
    if beta is None:
        from fla.ops.simple_gla import chunk_simple_gla as kernel
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as kernel
    o, final = kernel(**given, scale=1.0, initial_state=state, output_final_state=True)
    return o.transpose(1, 2).to(v.dtype), final.to(state_type(v.dtype))
