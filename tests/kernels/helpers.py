"""Inputs shared by the operators' tests."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """Every array of one file of the golden reference data."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def projections(batch: int, heads: int, length: int, d_head: int, parts: int = 5, dtype=torch.float32) -> list[Tensor]:
    """`parts` views [B, H, T, d] of one projection [B, T, parts * H * d], as a model has them."""
    z = torch.randn(batch, length, parts * heads * d_head, dtype=torch.float64).to(dtype)
    return [x.unflatten(-1, (heads, d_head)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def rope_tables(positions: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
    """float32 (cos, sin) of the given positions, [*positions.shape, d], base 10000."""
    frequency = 10000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = (positions.to(torch.float64).unsqueeze(-1) * frequency).repeat(*[1] * positions.dim(), 2)
    return angle.cos().float(), angle.sin().float()


def gradients(outputs: list[Tensor], inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a random linear function of the outputs; the same function for the same seed and shapes."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in outputs)
    return list(torch.autograd.grad(loss, inputs))
