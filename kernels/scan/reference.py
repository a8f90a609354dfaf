"""The gated recurrence as it is defined: one step after another. Slow, and exact in float64."""

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split: channel i pairs with i + d/2, (a, b) -> (a cos - b sin, b cos + a sin).

    x: [..., d]; cos, sin: broadcastable to x, the second half of the channels repeating the first.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def gated_scan_reference(
    logit: Tensor, k: Tensor, v: Tensor, initial: Pair | None = None, rope: Pair | None = None
) -> tuple[Tensor, Tensor, Pair]:
    """h_t = g_t h_{t-1} + (1 - g_t) u_t with g = sigmoid(logit), for u = k and u = v; see `gated_scan`."""
    dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    batch, heads, length, d_head = k.shape
    keep = torch.sigmoid(logit.to(dtype))
    take = torch.sigmoid(-logit.to(dtype))
    zeros = torch.zeros(batch, heads, d_head, dtype=dtype, device=k.device)
    h_k, h_v = (zeros, zeros) if initial is None else (initial[0].to(dtype), initial[1].to(dtype))
    all_k, all_v = [], []
    for t in range(length):
        h_k = keep[:, :, t] * h_k + take[:, :, t] * k[:, :, t].to(dtype)
        h_v = keep[:, :, t] * h_v + take[:, :, t] * v[:, :, t].to(dtype)
        all_k.append(h_k)
        all_v.append(h_v)
    k_tilde, v_tilde = torch.stack(all_k, dim=2), torch.stack(all_v, dim=2)
    if rope is not None:
        cos, sin = (table.to(dtype) for table in rope)
        if cos.dim() == 3:  # [B, T, d]: one table a sequence, shared by its heads
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        k_tilde = rotate(k_tilde, cos, sin)
    return k_tilde.to(k.dtype), v_tilde.to(v.dtype), (h_k, h_v)
