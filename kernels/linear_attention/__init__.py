"""`ssd` and `gated_delta_rule`: causal linear attention, whose past is a matrix of fixed size a head.

    ssd               S_t = a_t S_{t-1} + k_t v_t^T                                   Mamba2's SSD, arXiv 2405.21060
    gated_delta_rule  S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T           Gated DeltaNet, arXiv 2412.06464
    both              o_t = S_t^T q_t,   a_t = exp(log_decay_t)

On CUDA they are the Triton kernels of the package fla-core where it is installed.
"""

import torch
from torch import Tensor

from ratplus.kernels.dispatch import choose
from ratplus.kernels.linear_attention import fused
from ratplus.kernels.linear_attention.eager import chunked
from ratplus.kernels.linear_attention.reference import recurrent

# Of a key, in fla-core's kernel of the delta rule.
_MOST_CHANNELS = 256

__all__ = ["gated_delta_rule", "linear_attention_step", "ssd"]


def ssd(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Linear attention with a decay for each head and token: S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t.

    Args:
        q, k: [B, H, T, d_k], or [B, 1, T, d_k] where all heads share them.
        v: [B, H, T, d_v].
        log_decay: [B, H, T], ≤ 0; 0 at a token whose k or v is zero leaves the state as it is (right padding).
        initial: state before the first token [B, H, d_k, d_v]; None means zeros.

    Returns (o, final): o [B, H, T, d_v] in v's dtype; final, the state after the last token [B, H, d_k, d_v], float32
    (float64 for float64 inputs).

    Raises ValueError for shapes or dtypes that don't fit.
    """
    return _run("ssd", q, k, v, log_decay, None, initial)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Linear attention that first takes away what the state holds at a key, beta of it, then writes beta of the value.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, o_t = S_t^T q_t. It stays bounded where k has norm 1 and beta
    is between 0 and 1.

    Args:
        beta: [B, H, T]; 0 at a token of log_decay 0 leaves the state as it is (right padding).
        q, k, v, log_decay, initial: as of `ssd`, and so are results and errors.
    """
    return _run("gated_delta_rule", q, k, v, log_decay, beta, initial)


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor
) -> Tensor:
    """One token: changes `state` [B, H, d_k, d_v] in place and returns o [B, H, d_v] in v's dtype. No gradients.

    Args:
        q, k: [B, H, d_k] or [B, 1, d_k].
        v: [B, H, d_v].
        log_decay, beta: [B, H]; beta None is the step of `ssd`.
    """
    one = None if beta is None else beta[..., None]
    o, final = recurrent(q[:, :, None], k[:, :, None], v[:, :, None], log_decay[..., None], one, state)
    state.copy_(final)
    return o[:, :, 0]


def _run(op: str, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, initial: Tensor | None):
    _check(op, q, k, v, log_decay, beta, initial)
    given = (q, k, v, log_decay, beta, initial)
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    chosen = _implementation(op, k, v, gradients)
    if chosen == "reference":
        return recurrent(q, k, v, log_decay, beta, initial)
    if chosen == "eager":
        return chunked(q, k, v, log_decay, beta, initial)
    return fused.fused(q, k, v, log_decay, beta, initial)


def _implementation(op: str, k: Tensor, v: Tensor, gradients: bool = False) -> str:
    """Which path runs: as `dispatch.implementation`, but what is fused is fla-core's.

    Args:
        gradients: whether a backward pass may follow.

    Raises ValueError where RATPLUS_KERNELS=fused can't be done.
    """
    return choose(op, v.device.type == "cuda", lambda: no_fused_reason(op, k.shape[3], v, gradients))


def no_fused_reason(op: str, d_k: int, v: Tensor, gradients: bool = False) -> str | None:
    """Why fla-core's kernels can't take keys of d_k channels and such values, in one line; None if they can.

    Args:
        gradients: whether they must have a backward pass, which some GPUs and versions of Triton don't allow.
    """
    if v.device.type != "cuda":
        return f"tensors are on {v.device.type}; fla-core's kernels need cuda"
    if v.dtype == torch.float64:
        return "float64; fla-core's kernels take bfloat16, float16 and float32"
    if op == "gated_delta_rule" and d_k > _MOST_CHANNELS:
        return f"d_k={d_k}; fla-core's kernel takes at most {_MOST_CHANNELS}"
    if not fused.HAS_FLA:
        return "fla-core is not installed (pip install 'ratplus[peers]')"
    return fused.no_gradients_reason(op, d_k, v) if gradients else None


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor | None, initial: Tensor | None):
    if v.dim() != 4 or v.shape[2] < 1:
        raise ValueError(f"{op}: v has shape {tuple(v.shape)}; it must be [batch, heads, length >= 1, d_v]")
    batch, heads, length, d_v = v.shape
    shared = k.dim() == 4 and k.shape[1] in (1, heads) and (k.shape[0], k.shape[2]) == (batch, length)
    if not shared or q.shape != k.shape:
        raise ValueError(
            f"{op}: q has shape {tuple(q.shape)} and k {tuple(k.shape)}; both must be [batch, heads or 1, length, d_k] "
            f"with v's batch, heads, length = {(batch, heads, length)}"
        )
    for name, x in (("log_decay", log_decay), ("beta", beta)):
        if x is not None and x.shape != (batch, heads, length):
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)}; it must be [batch, heads, length] = {(batch, heads, length)}"
            )
    if not (q.dtype == k.dtype == v.dtype) or not v.is_floating_point():
        raise ValueError(f"{op}: q is {q.dtype}, k is {k.dtype}, v is {v.dtype}; all must be one floating-point type")
    if initial is not None and initial.shape != (batch, heads, k.shape[3], d_v):
        raise ValueError(
            f"{op}: the initial state has shape {tuple(initial.shape)}; it must be [batch, heads, d_k, d_v] = "
            f"{(batch, heads, k.shape[3], d_v)}"
        )
