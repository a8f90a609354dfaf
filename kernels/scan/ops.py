"""The recurrence as a `torch.library` operator, so that `torch.compile` sees one node instead of a loop."""

from importlib import import_module

import torch
from torch import Tensor

from ratplus.kernels.scan.eager import state_dtype


def _home(implementation: str):
    """The module whose `forward` and `backward` run; Triton is imported only when the fused one is asked for."""
    return import_module(f"ratplus.kernels.scan.{implementation}")


@torch.library.custom_op("ratplus::gated_scan", mutates_args=())
def scan_op(
    logit: Tensor,
    k: Tensor,
    v: Tensor,
    k0: Tensor | None,
    v0: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`eager.forward` or `fused.forward`."""
    return _home(implementation).forward(logit, k, v, k0, v0, cos, sin)


@torch.library.custom_op("ratplus::gated_scan_backward", mutates_args=())
def scan_backward_op(
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
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`eager.backward` or `fused.backward`."""
    return _home(implementation).backward(
        grad_k, grad_v, grad_k_state, grad_v_state, logit, k, v, k0, v0, cos, sin, k_tilde, v_tilde
    )


def _time_major(like: Tensor) -> Tensor:
    """[B, H, T, d], stored [B, T, H, d]."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _state(k: Tensor) -> Tensor:
    return k.new_empty(k.shape[0], k.shape[1], k.shape[3], dtype=state_dtype(k.dtype))


@scan_op.register_fake
def _(logit, k, v, k0, v0, cos, sin, implementation):
    return _time_major(k), _time_major(k), _state(k), _state(k)


@scan_backward_op.register_fake
def _(grad_k, grad_v, grad_k_state, grad_v_state, logit, k, *rest):
    return _time_major(logit), _time_major(k), _time_major(k), _state(k), _state(k)


def _setup_context(ctx, inputs, output):
    logit, k, v, k0, v0, cos, sin, ctx.implementation = inputs
    k_tilde, v_tilde, _, _ = output
    ctx.save_for_backward(logit, k, v, k0, v0, cos, sin, k_tilde, v_tilde)


def _backward(ctx, *gradients):
    saved = ctx.saved_tensors
    d_logit, dk, dv, dk0, dv0 = scan_backward_op(*gradients, *saved, ctx.implementation)
    k0, v0 = saved[3:5]
    d_initial = (None, None) if k0 is None else (dk0.to(k0.dtype), dv0.to(v0.dtype))
    return d_logit, dk, dv, *d_initial, None, None, None


scan_op.register_autograd(_backward, setup_context=_setup_context)
