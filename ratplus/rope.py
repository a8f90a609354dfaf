"""Rotary position embedding, half-split form (channel i turns with channel i + d/2). Source: arXiv 2104.09864."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(positions: Tensor, d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle position * base^(-2i/d_head), float32, shape [*positions.shape, d_head].

    The second half of the channels repeats the first. Always float32: in bfloat16 the angle of a far position is lost.
    """
    pair = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / base ** (pair / d_head)
    angle = positions.to(torch.float32)[..., None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, d] by tables broadcastable to it; computed in at least float32, returned in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)
