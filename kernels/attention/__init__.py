"""`dilated_attention`: causal attention that sees sinks, every D-th key and a local window."""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels.attention.ops import attention_op
from ratplus.kernels.attention.patterns import Setting, grouping, head_patterns, on_device, pattern_tensors
from ratplus.kernels.attention.reference import dilated_attention_reference
from ratplus.kernels.dispatch import implementation

__all__ = ["dilated_attention"]


@overload
def dilated_attention(
    q: Tensor, k: Tensor, v: Tensor, dilation: Setting, window: Setting, sinks: Setting,
    return_lse: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def dilated_attention(
    q: Tensor, k: Tensor, v: Tensor, dilation: Setting, window: Setting, sinks: Setting, return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


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

    q: [B, H, T, d], k, v: [B, H_kv, T, d] of any strides; H a multiple of H_kv: query head h attends to key head
    h // (H / H_kv), so that H_kv = H is multi-head attention, fewer grouped-query and 1 multi-query attention. Keys and
    values are never copied for the heads that share them.
    dilation, window, sinks: ints, or int32 tensors [H_kv], one value a key head and its queries; dilation None (in a
    tensor: -1) keeps nothing dilated, 1 is dense.

    Returns out [B, H, T, d] in q's dtype; with return_lse also the log-sum-exp of the visible scores,
    [B, H, T] float32, through which no gradient flows. The softmax accumulates in float32 (float64 for float64).
    Raises ValueError for shapes, dtypes or patterns that are not allowed.
    """
    if not _shapes_fit(q, k, v):
        raise ValueError(
            f"dilated_attention: q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "all three must be the same [batch, heads, length >= 1, d_head]; k and v may have fewer heads, a divisor "
            "of q's"
        )
    if not q.is_floating_point() or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"dilated_attention: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; use one floating dtype")
    heads, length = k.shape[1:3]
    chosen = implementation("dilated_attention", q.shape[3], q)
    longest_far = widest_window = length  # where the settings can't be read: upper bounds
    if chosen == "reference" or not on_device(dilation, window, sinks):
        patterns = head_patterns(dilation, window, sinks, heads)
        if chosen == "reference":
            out, lse = dilated_attention_reference(q, k, v, patterns)
            return (out, lse.detach()) if return_lse else out
        # On CUDA torch's fast kernels take grouped heads in half precision only; else it builds all T x T scores.
        fast = q.shape[1] == heads or q.device.type == "cpu" or q.dtype in (torch.float16, torch.bfloat16)
        if not return_lse and fast and all(pattern.is_dense(length) for pattern in patterns):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouping(q, k))
        longest_far = max(pattern.far_length(length) for pattern in patterns)
        widest_window = max(pattern.window for pattern in patterns)
    settings = pattern_tensors(dilation, window, sinks, heads, q.device)
    out, lse = attention_op(q, k, v, *settings, longest_far, widest_window, return_lse, chosen)
    return (out, lse.detach()) if return_lse else out


def _shapes_fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if q.dim() != 4 or k.dim() != 4 or q.shape[2] < 1 or v.shape != k.shape:
        return False
    same = q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    return same and k.shape[1] >= 1 and q.shape[1] % k.shape[1] == 0
