"""Rotary position embedding, half-split form (channel i turns with channel i + d/2). Source: arXiv 2104.09864.

A model used beyond the context that it was trained for may turn more slowly: `linear` divides every angle by the factor
(arXiv 2306.15595), `yarn` only those of channels that never made a whole turn (arXiv 2309.00071), `llama3` likewise
with a ramp that is linear in a channel's turns (Llama 3.1; the form is that of Meta's public code).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Turns within the trained context: a channel that made more keeps its angles, one that made fewer takes all of the
# factor (beta and alpha of YaRN).
_MANY_TURNS, _FEW_TURNS = 32, 1


def rope_tables(
    positions: Tensor,
    d_head: int,
    base: float,
    scaling: str = "none",
    factor: float = 1.0,
    original: int | None = None,
    low: float | None = None,
    high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle position * frequency, float32, shape [*positions.shape, d_head].

    The second half of the channels repeats the first. Always float32: in bfloat16 the angle of a far position is lost.
    cos^2 + sin^2 = 1 under every scaling, since the scan's backward pass un-rotates with the same tables; YaRN's
    temperature is the caller's (`attention_scale`).
    """
    frequency = rope_frequencies(d_head, base, scaling, factor, original, positions.device, low, high)
    angle = positions.to(torch.float32)[..., None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rope_frequencies(
    d_head: int,
    base: float,
    scaling: str = "none",
    factor: float = 1.0,
    original: int | None = None,
    device: torch.device | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """Radians a position of each pair of channels, float32 [d_head / 2]: base^(-2i/d_head), scaled."""
    pair = torch.arange(0, d_head, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / base ** (pair / d_head)
    if scaling == "none":
        return frequency
    if scaling == "linear":
        return frequency / factor
    assert original is not None  # ModelConfig sees to it
    if scaling == "llama3":
        assert low is not None
        assert high is not None
        turns = original * frequency / (2 * math.pi)  # that a channel makes within the trained context
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - kept) * frequency / factor + kept * frequency
    assert scaling == "yarn", scaling
    # The paper's ramp is linear in a channel's turns; that of its authors' code, and of all others
    # since, is linear in the channel's number, between whole channels. A model must mean the same here as there.
    first = max(math.floor(_channel_of(_MANY_TURNS, d_head, base, original)), 0)
    last = min(math.ceil(_channel_of(_FEW_TURNS, d_head, base, original)), d_head - 1)
    slowed = ((torch.arange(d_head // 2, device=device) - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequency * (1 - slowed) + frequency / factor * slowed


def _channel_of(turns: float, d_head: int, base: float, original: int) -> float:
    """Number of the pair of channels, not rounded, that makes so many turns in `original` positions."""
    return d_head * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))


def attention_scale(scaling: str, factor: float) -> float:
    """What the attention logits are multiplied by beside 1/sqrt(d_head): YaRN's 1/t, else 1.

    Its sqrt(1/t) = 0.1 ln(factor) + 1 stands for queries and keys alike.
    """
    return (0.1 * math.log(factor) + 1) ** 2 if scaling == "yarn" else 1.0


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, d] by tables broadcastable to it; computed in at least float32, returned in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)
