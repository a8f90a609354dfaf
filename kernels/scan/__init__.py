"""`gated_scan`: the recurrence that keys and values pass through before attention."""

import torch
from torch import Tensor

from ratplus.kernels.dispatch import implementation
from ratplus.kernels.scan.ops import scan_op
from ratplus.kernels.scan.reference import gated_scan_reference

__all__ = ["gated_scan"]

Pair = tuple[Tensor, Tensor]


def gated_scan(
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    initial: Pair | None = None,
    rope: Pair | None = None,
) -> tuple[Tensor, Tensor, Pair]:
    """Gated linear recurrence over time, per channel, with one gate for keys and values.

        h_t = g_t h_{t-1} + (1 - g_t) u_t,   g = sigmoid(logit),   u = k, v

    logit, k, v: [B, H, T, d] of any strides; views of the input projection's output are not copied.
    initial: the state before the first token, (k, v) [B, H, d]; None means zeros.
    rope: (cos, sin), each [T, d] or [B, T, d] float32, second half of d repeating the first. Only the k that is
        returned is rotated, never the state.

    Returns (k_tilde, v_tilde, (k_state, v_state)): the first two [B, H, T, d] in k's dtype, stored as [B, T, H, d];
    the state after the last token un-rotated, [B, H, d], float32 (float64 for float64 inputs).
    A logit of +inf holds the state exactly: such a token leaves no trace (right padding).
    Raises ValueError for shapes or dtypes that don't fit.
    """
    _check(logit, k, v, initial, rope)
    chosen = implementation("gated_scan", k.shape[3], k, logit)
    if chosen == "reference":
        return gated_scan_reference(logit, k, v, initial, rope)
    cos, sin = (None, None) if rope is None else (_per_head(table) for table in rope)
    k0, v0 = (None, None) if initial is None else initial
    k_tilde, v_tilde, k_state, v_state = scan_op(logit, k, v, k0, v0, cos, sin, chosen)
    return k_tilde, v_tilde, (k_state, v_state)


def _per_head(table: Tensor) -> Tensor:
    """[T, d] or [B, T, d] -> broadcastable to [B, H, T, d]."""
    return table if table.dim() == 2 else table.unsqueeze(1)


def _check(logit: Tensor, k: Tensor, v: Tensor, initial: Pair | None, rope: Pair | None) -> None:
    if k.dim() != 4 or k.shape[2] < 1:
        raise ValueError(f"gated_scan: k has shape {tuple(k.shape)}; it must be [batch, heads, length >= 1, d_head]")
    for name, x in (("logit", logit), ("v", v)):
        if x.shape != k.shape:
            raise ValueError(f"gated_scan: {name} has shape {tuple(x.shape)}; it must equal k's {tuple(k.shape)}")
    if k.dtype != v.dtype or not k.is_floating_point() or not logit.is_floating_point():
        raise ValueError(
            f"gated_scan: k is {k.dtype}, v is {v.dtype}, logit is {logit.dtype}; "
            "all must be floating point, k and v of one dtype"
        )
    batch, heads, length, d_head = k.shape
    if initial is not None:
        for name, state in zip(("k", "v"), initial, strict=True):
            if state.shape != (batch, heads, d_head):
                raise ValueError(
                    f"gated_scan: the initial {name} state has shape {tuple(state.shape)}; "
                    f"it must be [batch, heads, d_head] = {(batch, heads, d_head)}"
                )
    if rope is not None:
        if d_head % 2:
            raise ValueError(f"gated_scan: rope needs an even d_head; it is {d_head}")
        for name, table in zip(("cos", "sin"), rope, strict=True):
            if table.shape not in (torch.Size((length, d_head)), torch.Size((batch, length, d_head))):
                raise ValueError(
                    f"gated_scan: rope {name} has shape {tuple(table.shape)}; it must be [length, d_head] = "
                    f"{(length, d_head)} or [batch, length, d_head] = {(batch, length, d_head)}"
                )
        if rope[0].shape != rope[1].shape:
            raise ValueError(f"gated_scan: rope cos is {tuple(rope[0].shape)} but sin is {tuple(rope[1].shape)}")
