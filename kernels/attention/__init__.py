"""`dilated_attention`: causal attention that sees sinks, every D-th key and a local window."""

import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.attention.ops import attention_op
from ratplus.kernels.attention.patterns import Setting, head_patterns, on_device, pattern_tensors
from ratplus.kernels.attention.reference import dilated_attention_reference
from ratplus.kernels.dispatch import implementation

__all__ = ["dilated_attention"]


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dilation: Setting,
    window: Setting,
    sinks: Setting,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention, scale d^-0.5, where query t sees key p exactly if

        p <= t  and  (p < sinks  or  t - p <= window  or  (p + 1) % dilation == 0)

    q, k, v: [B, H, T, d] of any strides. dilation, window, sinks: ints, or int32 tensors [H], one value a head;
    dilation None (in a tensor: -1) keeps nothing dilated, 1 is dense.

    Returns out [B, H, T, d] in q's dtype; with return_lse also the log-sum-exp of the visible scores,
    [B, H, T] float32, through which no gradient flows. The softmax accumulates in float32 (float64 for float64).
    Raises ValueError for shapes, dtypes or patterns that are not allowed.
    """
    if q.dim() != 4 or q.shape[2] < 1 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"dilated_attention: q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "all three must be the same [batch, heads, length >= 1, d_head]"
        )
    if not q.is_floating_point() or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"dilated_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; use one floating dtype")
    heads, length = q.shape[1:3]
    chosen = implementation("dilated_attention", q.shape[3], q)
    longest_far = length
    if chosen == "reference" or not on_device(dilation, window, sinks):
        patterns = head_patterns(dilation, window, sinks, heads)
        if chosen == "reference":
            out, lse = dilated_attention_reference(q, k, v, patterns)
            return (out, lse.detach()) if return_lse else out
        if not return_lse and all(pattern.is_dense(length) for pattern in patterns):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        longest_far = max(pattern.far_length(length) for pattern in patterns)
    settings = pattern_tensors(dilation, window, sinks, heads, q.device)
    out, lse = attention_op(q, k, v, *settings, longest_far, return_lse, chosen)
    return (out, lse.detach()) if return_lse else out
