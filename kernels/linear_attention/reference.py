"""Linear attention as it is defined: one step after another. Slow, and exact in float64."""

import torch
from torch import Tensor


def state_type(dtype: torch.dtype) -> torch.dtype:
    """What the state is kept in: float32, whatever lower precision the values have, or float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None = None, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd` where beta is None, else `gated_delta_rule`: arguments and results as there.

    With S' = a_t S_{t-1}, what is written at a key is u_t = v_t, or u_t = b_t (v_t - S'^T k_t); S_t = S' + k_t u_t^T.
    """
    dtype = state_type(v.dtype)
    batch, heads, length, d_v = v.shape
    state = v.new_zeros(batch, heads, k.shape[3], d_v, dtype=dtype) if initial is None else initial.to(dtype)
    decay = log_decay.to(dtype).exp()
    outputs = []
    for t in range(length):
        key, query, write = (x[:, :, t].to(dtype) for x in (k, q, v))
        state = decay[:, :, t, None, None] * state
        if beta is not None:
            write = beta[:, :, t, None].to(dtype) * (write - _read(state, key))
        state = state + key[..., None] * write[..., None, :]
        outputs.append(_read(state, query))
    return torch.stack(outputs, dim=2).to(v.dtype), state


def _read(state: Tensor, key: Tensor) -> Tensor:
    """S^T k: [B, H, d_v] of a state [B, H, d_k, d_v] and a key [B, H or 1, d_k]."""
    return (key[..., None] * state).sum(dim=-2)
