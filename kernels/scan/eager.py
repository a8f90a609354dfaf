"""The gated recurrence in PyTorch: a time-blocked loop over rows, with its own backward pass.

A block of time steps is copied into a small scratch buffer, time first and k beside v, so that a step is one `lerp` on
a contiguous row that is still in cache. The copies are also where dtypes change and where the rotation happens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

SCRATCH_ELEMENTS = 1 << 17  # of one buffer [steps, B, H, d]; a few of them fit the second-level cache of a core


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The recurrent state is float32 whatever the inputs are, and float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> None:
    """out = x rotated by `sign` times the angles; all [B, H, T, d] or broadcastable, out and x may not overlap."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    out[..., :half] = torch.addcmul(a * cos, b, sin, value=-sign)
    out[..., half:] = torch.addcmul(b * cos, a, sin, value=sign)


def _steps(k: Tensor) -> int:
    """Time steps a block."""
    return min(k.shape[2], max(8, SCRATCH_ELEMENTS // max(1, k.shape[0] * k.shape[1] * k.shape[3])))


def _blocks(length: int, steps: int) -> list[slice]:
    return [slice(start, min(start + steps, length)) for start in range(0, length, steps)]


class _Rows:
    """Scratch for the two streams of one block: `data` [steps, 2, B, H, d], read and written as [B, H, steps, d]."""

    def __init__(self, like: Tensor, steps: int, dtype: torch.dtype):
        batch, heads, _, d_head = like.shape
        self.data = like.new_empty(steps, 2, batch, heads, d_head, dtype=dtype)
        self.rows = self.data.unbind(0)
        self.streams = self.data.permute(1, 2, 3, 0, 4)

    def load(self, stream: int, x: Tensor, at: int = 0) -> None:
        """Puts x [B, H, n, d] into steps at .. at + n of a stream."""
        self.streams[stream][:, :, at : at + x.shape[2]].copy_(x)

    def load_rotated(self, stream: int, x: Tensor, cos: Tensor | None, sin: Tensor | None, at: int = 0) -> None:
        """`load`, after undoing the rotation by the angles of (cos, sin)."""
        if cos is None or sin is None:
            return self.load(stream, x, at)
        target = self.streams[stream][:, :, at : at + x.shape[2]]
        return _rotate_into(target, x.to(self.data.dtype), cos, sin, sign=-1)


def _shut(logit: Tensor, out: Tensor) -> Tensor:
    """1 - g = sigmoid(-logit) of logit [B, H, n, d], written into out [n, 1, B, H, d]: accurate where g is almost 1."""
    return out.copy_(logit.permute(2, 0, 1, 3).unsqueeze(1)).neg_().sigmoid_()


def forward(
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    k0: Tensor | None,
    v0: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logit, k, v [B, H, T, d]; initial states [B, H, d] or None; tables broadcastable to [B, H, T, d] or None.

    Returns k_tilde, v_tilde [B, H, T, d] (stored [B, T, H, d]) and the final states of k and v [B, H, d].
    """
    batch, heads, length, d_head = k.shape
    # Memory order [B, T, H, d], as the projections have it.
    k_tilde, v_tilde = (k.new_empty(batch, length, heads, d_head).transpose(1, 2) for _ in range(2))
    carry = _carry(k, k0, v0)
    for part, k_states, v_states in _walk(logit, k, v, carry):
        if cos is None or sin is None:
            k_tilde[:, :, part] = k_states
        else:
            _rotate_into(k_tilde[:, :, part], k_states, cos[..., part, :], sin[..., part, :], sign=1)
        v_tilde[:, :, part] = v_states
    return k_tilde, v_tilde, carry[0].clone(), carry[1].clone()


def _carry(k: Tensor, k0: Tensor | None, v0: Tensor | None) -> Tensor:
    """[2, B, H, d]: the two states before the first step."""
    carry = k.new_zeros(2, k.shape[0], k.shape[1], k.shape[3], dtype=state_dtype(k.dtype))
    if k0 is not None and v0 is not None:
        carry[0], carry[1] = k0, v0
    return carry


def _walk(logit: Tensor, k: Tensor, v: Tensor, carry: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(steps, states of k, states of v [B, H, n, d]) block by block, valid until the next; moves `carry` on."""
    batch, heads, length, d_head = k.shape
    steps = _steps(k)
    scratch = _Rows(k, steps, carry.dtype)
    take = k.new_empty(steps, 1, batch, heads, d_head, dtype=carry.dtype)
    take_rows = take.unbind(0)
    for part in _blocks(length, steps):
        count = part.stop - part.start
        _shut(logit[:, :, part], out=take[:count])
        scratch.load(0, k[:, :, part])
        scratch.load(1, v[:, :, part])
        state = carry
        for row, take_row in zip(scratch.rows[:count], take_rows):
            state = torch.lerp(state, row, take_row, out=row)
        carry.copy_(state)
        yield part, scratch.streams[0][:, :, :count], scratch.streams[1][:, :, :count]


def backward(
    grad_k: Tensor,
    grad_v: Tensor,
    grad_k_state: Tensor,
    grad_v_state: Tensor,
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    k0: Tensor | None,
    v0: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    k_tilde: Tensor,
    v_tilde: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of logit, k, v (stored [B, T, H, d]) and of the initial states, from those of `forward`'s results.

    With dh_t = (gradient of output t) + g_{t+1} dh_{t+1}:
        du_t = (1 - g_t) dh_t;   dlogit_t = g_t (1 - g_t) (h_{t-1} - u_t) dh_t, summed over k and v.
    The states h come from the outputs, un-rotated; nothing else was saved.
    """
    dtype = state_dtype(k.dtype)
    batch, heads, length, d_head = k.shape
    steps = _steps(k)
    dh, before = _Rows(k, steps, dtype), _Rows(k, steps, dtype)
    take = k.new_empty(steps, 1, batch, heads, d_head, dtype=dtype)
    gate = torch.empty_like(take)
    gate_rows = gate.unbind(0)
    dlogit = logit.new_empty(batch, length, heads, d_head).transpose(1, 2)
    dk, dv = (k.new_empty(batch, length, heads, d_head).transpose(1, 2) for _ in range(2))
    carry = torch.stack((grad_k_state, grad_v_state)).to(dtype)  # what flows into h_t from later steps
    for part in reversed(_blocks(length, steps)):
        count = part.stop - part.start
        cut = (None, None) if cos is None or sin is None else (cos[..., part, :], sin[..., part, :])
        _shut(logit[:, :, part], out=take[:count])
        torch.sub(1, take[:count], out=gate[:count])
        dh.load_rotated(0, grad_k[:, :, part], *cut)
        dh.load(1, grad_v[:, :, part])
        later = dh.rows[count - 1].add_(carry)
        for row, gate_row in zip(reversed(dh.rows[: count - 1]), reversed(gate_rows[1:count])):
            later = torch.addcmul(row, gate_row, later, out=row)
        torch.mul(later, gate_rows[0], out=carry)

        # States before each step: the outputs, one step earlier.
        skip = 1 if part.start == 0 else 0
        past = slice(part.start - 1 + skip, part.stop - 1)
        cut = (None, None) if cos is None or sin is None else (cos[..., past, :], sin[..., past, :])
        before.load_rotated(0, k_tilde[:, :, past], *cut, at=skip)
        before.load(1, v_tilde[:, :, past], at=skip)
        if skip and k0 is not None and v0 is not None:
            before.rows[0][0], before.rows[0][1] = k0, v0
        elif skip:
            before.rows[0].zero_()

        du = dh.data[:count].mul_(take[:count])
        dk[:, :, part], dv[:, :, part] = (stream[:, :, :count] for stream in dh.streams)
        before.streams[0][:, :, :count].sub_(k[:, :, part])
        before.streams[1][:, :, :count].sub_(v[:, :, part])
        change = before.data[:count].mul_(du)
        d_part = change[:, 0].add_(change[:, 1]).mul_(gate[:count, 0])  # [count, B, H, d]
        dlogit[:, :, part] = d_part.permute(1, 2, 0, 3)
    return dlogit, dk, dv, carry[0].clone(), carry[1].clone()
