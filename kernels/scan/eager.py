"""The gated recurrence in PyTorch: a time-blocked loop over rows, with its own backward pass.

One `lerp` a time step does k and v together. Time is cut into blocks whose gates and rows stay in cache.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Pair = tuple[Tensor, Tensor]
BLOCK = 256  # time steps a block


def gated_scan_eager(
    logit: Tensor, k: Tensor, v: Tensor, initial: Pair | None = None, rope: Pair | None = None
) -> tuple[Tensor, Tensor, Pair]:
    """See `ratplus.kernels.scan.gated_scan`."""
    cos, sin = (None, None) if rope is None else (_per_head(rope[0]), _per_head(rope[1]))
    k0, v0 = (None, None) if initial is None else initial
    k_tilde, v_tilde, k_state, v_state = _GatedScan.apply(logit, k, v, k0, v0, cos, sin)
    return k_tilde, v_tilde, (k_state, v_state)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The recurrent state is float32 whatever the inputs are, and float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_head(table: Tensor) -> Tensor:
    """[T, d] or [B, T, d] -> broadcastable to [B, H, T, d]."""
    return table if table.dim() == 2 else table.unsqueeze(1)


def stack_pair(k: Tensor, v: Tensor) -> Tensor:
    """[2, ...]: k and v as one tensor, without a copy when they are slices of the same storage."""
    if k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() and k.stride() == v.stride():
        step = v.storage_offset() - k.storage_offset()
        if step > 0:
            return k.as_strided((2, *k.shape), (step, *k.stride()), k.storage_offset())
    return torch.stack((k, v))


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> None:
    """Rotary embedding of x [..., T, d] by the angles of (cos, sin), or by their opposites, written into `out`."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    out[..., :half].copy_(torch.addcmul(a * cos, b, sin, value=-sign))
    out[..., half:].copy_(torch.addcmul(b * cos, a, sin, value=sign))


def empty_pair(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised [2, B, H, T, d] laid out in memory as [2, B, T, H, d]."""
    batch, heads, length, d_head = like.shape
    return torch.empty(2, batch, length, heads, d_head, dtype=dtype, device=like.device).transpose(2, 3)


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logit, k, v, k0, v0, cos, sin):
        dtype = state_dtype(k.dtype)
        length = k.shape[2]
        rows = stack_pair(k, v)
        state = k.new_zeros((2, *k.shape[:2], k.shape[3]), dtype=dtype)
        if k0 is not None:
            state.copy_(torch.stack((k0, v0)))
        out = empty_pair(k, k.dtype)
        for start in range(0, length, BLOCK):
            part = slice(start, min(start + BLOCK, length))
            take = torch.sigmoid(logit[:, :, part].to(dtype).neg())
            u = rows[:, :, :, part].to(dtype)
            block = out[:, :, :, part]
            direct = cos is None and out.dtype == dtype
            h = block if direct else torch.empty_like(u)
            for row, u_row, take_row in zip(h.unbind(3), u.unbind(3), take.unbind(2)):
                torch.lerp(state, u_row, take_row, out=row)
                state = row
            if not direct:
                if cos is None:
                    block.copy_(h)
                else:
                    rotate_into(block[0], h[0], cos[..., part, :], sin[..., part, :])
                    block[1].copy_(h[1])
        final = state.clone(memory_format=torch.contiguous_format)
        k_tilde, v_tilde = out.unbind(0)
        ctx.save_for_backward(logit, k, v, k0, v0, cos, sin, k_tilde, v_tilde)
        return k_tilde, v_tilde, final[0], final[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_k, grad_v, grad_k_state, grad_v_state):
        logit, k, v, k0, v0, cos, sin, k_tilde, v_tilde = ctx.saved_tensors
        dtype = state_dtype(k.dtype)
        length = k.shape[2]
        carry = torch.stack((grad_k_state, grad_v_state)).to(dtype)  # gradient that flows into h_{t}
        du = empty_pair(k, dtype)
        dlogit = torch.empty_like(k_tilde, dtype=dtype)
        for start in reversed(range(0, length, BLOCK)):
            part = slice(start, min(start + BLOCK, length))
            gate = torch.sigmoid(logit[:, :, part].to(dtype))
            take = torch.sigmoid(logit[:, :, part].to(dtype).neg())
            dh = du[:, :, :, part]
            if cos is None:
                dh[0].copy_(grad_k[:, :, part])
            else:
                rotate_into(dh[0], grad_k[:, :, part].to(dtype), cos[..., part, :], sin[..., part, :], sign=-1)
            dh[1].copy_(grad_v[:, :, part])
            for row, gate_row in zip(reversed(dh.unbind(3)), reversed(gate.unbind(2))):
                row.add_(carry)
                carry = row * gate_row
            # Previous states h_{t-1}, from the outputs: un-rotated, shifted by one step.
            before = torch.empty_like(dh)
            first = max(start, 1)
            past = slice(first - 1, part.stop - 1)
            target = before[:, :, :, first - start :]
            if cos is None:
                target[0].copy_(k_tilde[:, :, past])
            else:
                rotate_into(target[0], k_tilde[:, :, past].to(dtype), cos[..., past, :], sin[..., past, :], sign=-1)
            target[1].copy_(v_tilde[:, :, past])
            if start == 0:
                before[:, :, :, 0].copy_(torch.stack((k0, v0)) if k0 is not None else torch.zeros_like(carry))
            dh.mul_(take)
            change = before.sub_(torch.stack((k[:, :, part], v[:, :, part]))).mul_(dh)
            torch.mul(change.sum(0), gate, out=dlogit[:, :, part])
        du = du.to(k.dtype)
        d_initial = (carry[0], carry[1]) if k0 is not None else (None, None)
        return dlogit.to(logit.dtype), du[0], du[1], *d_initial, None, None
