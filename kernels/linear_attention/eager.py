"""Linear attention in chunks, for CPUs and as a fallback: matrix products within a chunk, a loop over chunks.

Let G_i be the sum of log decays from a chunk's start to its token i, and S the state before the chunk. With what is
written at each key, u_i, the state after token i is exp(G_i) S + sum_{j<=i} exp(G_i - G_j) k_j u_j^T. For SSD u = v.
For the delta rule the u of a chunk solve a triangular system (the WY form of arXiv 2406.06484, with decay as in arXiv
2412.06464): (I + A) U = b (V - exp(G) K S), A_ij = b_i exp(G_i - G_j) k_i k_j for j < i. Since it is linear in S, it is
solved for all chunks at once, and only S runs through the loop. No exponent is above 0, so nothing overflows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.linear_attention.reference import state_type

# Tokens of a chunk: work within chunks grows with it, the number of small products in the loop shrinks.
CHUNK = 64


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None = None, initial: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`ssd` where beta is None, else `gated_delta_rule`: arguments and results as there. Any length; differentiable."""
    # Autocast would put the products into bfloat16, in which the state must not be.
    with torch.autocast(v.device.type, enabled=False):
        dtype = state_type(v.dtype)
        batch, heads, length, d_v = v.shape
        chunk = min(chunk, length)
        # Zeros after the end write nothing and let nothing decay.
        q, k, values = (_in_chunks(x.to(dtype), chunk) for x in (q, k, v))
        total = _in_chunks(log_decay.to(dtype)[..., None], chunk).squeeze(-1).cumsum(-1)  # G, [B, H, N, C]
        within = _decay_within(total)
        from_start = total.exp()[..., None]
        written, erased = values, None
        if beta is not None:
            step = _in_chunks(beta.to(dtype)[..., None], chunk)
            system = (step * (k @ k.mT)) * within  # its diagonal and what is above are not read
            right = torch.cat((step * values, (step * from_start) * k), dim=-1)
            solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
            written, erased = solved.split((d_v, k.shape[-1]), dim=-1)
        scores = (q @ k.mT) * within
        queries = from_start * q
        keys = (total[..., -1:] - total).exp()[..., None] * k
        last = total[..., -1].exp()[..., None, None]
        state = values.new_zeros(batch, heads, k.shape[-1], d_v) if initial is None else initial.to(dtype)
        outputs = []
        for n in range(values.shape[2]):
            new = written[:, :, n] if erased is None else written[:, :, n] - erased[:, :, n] @ state
            outputs.append(queries[:, :, n] @ state + scores[:, :, n] @ new)
            state = last[:, :, n] * state + keys[:, :, n].mT @ new
        return torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :length].to(v.dtype), state


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, H, T, d] -> [B, H, N, chunk, d], with zeros after the end."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))


def _decay_within(total: Tensor) -> Tensor:
    """exp(G_i - G_j) for j <= i, else 0: [..., C, C] of G [..., C].

    Masked before exp, whose gradient at what is above the diagonal may be infinite.
    """
    gap = total[..., :, None] - total[..., None, :]
    size = total.shape[-1]
    above = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    return gap.masked_fill(above, -torch.inf).exp()
