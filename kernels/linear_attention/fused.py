"""Linear attention on CUDA: the Triton kernels of fla-core (extra `peers`), which is imported when they first run.

Theirs take tensors [B, T, H, d] and scale q by d_k^-0.5 unless they are told otherwise; ours take [B, H, T, d] and
scale nothing.
"""

from importlib.util import find_spec

from torch import Tensor

from ratplus.kernels.linear_attention.reference import state_type

HAS_FLA = find_spec("fla") is not None


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
