"""Dilated attention as it is defined: dense scores, masked by the visibility predicate, one softmax."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import HeadPattern


def visible_mask(pattern: HeadPattern, length: int, device: torch.device | None = None) -> Tensor:
    """[length, length] bool: whether query t (row) sees key p (column)."""
    t = torch.arange(length, device=device).unsqueeze(1)
    p = torch.arange(length, device=device).unsqueeze(0)
    near = (t - p <= pattern.window) | (p < pattern.sinks)
    if pattern.dilation >= 1:
        near = near | ((p + 1) % pattern.dilation == 0)
    return near & (p <= t)


def dilated_attention_reference(q: Tensor, k: Tensor, v: Tensor, patterns: list[HeadPattern]) -> tuple[Tensor, Tensor]:
    """q [B, H, T, d], k, v [B, H_kv, T, d]; a pattern a key head. Returns out in q's dtype, log-sum-exp [B, H, T]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    length, d_head = q.shape[2:]
    mask = torch.stack([visible_mask(pattern, length, q.device) for pattern in patterns for _ in range(group)])
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * d_head**-0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    out = torch.softmax(scores, dim=-1) @ v.to(dtype)
    return out.to(q.dtype), torch.logsumexp(scores, dim=-1).to(torch.float32)
