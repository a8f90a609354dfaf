"""Dilated attention as a `torch.library` operator, so that `torch.compile` sees one node."""

from importlib import import_module

import torch
from torch import Tensor


def _home(implementation: str):
    """The module whose functions run; Triton is imported only when the fused one is asked for."""
    return import_module(f"ratplus.kernels.attention.{implementation}")


@torch.library.custom_op("ratplus::dilated_attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    longest_far: int,
    widest_window: int,
    return_lse: bool,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """out [B, H, T, d], lse [B, H, T]; the eager path gives lse no columns unless it is asked for."""
    if implementation == "fused":  # its backward pass needs the log-sum-exp
        return _home(implementation).forward(q, k, v, dilation, window, sinks, longest_far)
    return _home(implementation).forward(q, k, v, dilation, window, sinks, return_lse)


@torch.library.custom_op("ratplus::dilated_attention_backward", mutates_args=())
def attention_backward_op(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Tensor,
    window: Tensor,
    sinks: Tensor,
    out: Tensor,
    lse: Tensor,
    longest_far: int,
    widest_window: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    if implementation == "fused":
        bounds = (longest_far, widest_window)
        return _home(implementation).backward(d_out, q, k, v, dilation, window, sinks, out, lse, *bounds)
    return _home(implementation).backward(d_out, q, k, v, dilation, window, sinks)


def time_major(like: Tensor) -> Tensor:
    """Empty [B, H, T, d] like another, stored [B, T, H, d]: what the attention operators return."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@attention_op.register_fake
def _(q, k, v, dilation, window, sinks, longest_far, widest_window, return_lse, implementation):
    columns = q.shape[2] if return_lse or implementation == "fused" else 0
    return time_major(q), q.new_empty(q.shape[0], q.shape[1], columns, dtype=torch.float32)


@attention_backward_op.register_fake
def _(d_out, q, k, v, *rest):
    return time_major(q), time_major(k), time_major(v)


def _setup_context(ctx, inputs, output):
    q, k, v, dilation, window, sinks, longest_far, widest_window, _, ctx.implementation = inputs
    ctx.bounds = (longest_far, widest_window)
    out, lse = output
    ctx.save_for_backward(q, k, v, dilation, window, sinks, out, lse)


def _backward(ctx, d_out, _d_lse):
    gradients = attention_backward_op(d_out, *ctx.saved_tensors, *ctx.bounds, ctx.implementation)
    return *gradients, *(None,) * 7


attention_op.register_autograd(_backward, setup_context=_setup_context)
