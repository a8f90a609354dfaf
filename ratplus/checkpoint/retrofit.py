"""A recurrence for a model that was trained without one: the same weights, and gates that barely open.

The rows of forget gates in every mixer's `in_proj` are 0 and their biases `gate_bias`, so every channel starts with the
gate sigmoid(gate_bias) at every token: at -2 a key is 0.88 of itself and 0.12 of what was before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ratplus.checkpoint.folder import shapes_of
from ratplus.checkpoint.tensor_file import Lazy
from ratplus.config.model import ModelConfig


def with_recurrence(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor | Lazy]:
    """Weights of a model of the shape `config`, which has a recurrence, from those of the same one without.

    Args:
        weights: by name, as `map_weights` gives them; larger ones are made only when they are written.
    """
    assert config.recurrence, config
    assert config.gate_bias is not None, config
    made: dict[str, Tensor | Lazy] = {}
    for name, shape in shapes_of(config).items():
        if name not in weights:
            assert name.endswith("mixer.gate_bias"), name
            made[name] = torch.full(shape, config.gate_bias)
        elif tuple(weights[name].shape) == shape:
            made[name] = weights[name]
        else:
            assert name.endswith("mixer.in_proj.weight"), name
            made[name] = Lazy(shape, weights[name].dtype, lambda name=name, shape=shape: _padded(weights[name], shape))
    return made


def _padded(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix with rows of 0 below, where a mixer has those of its forget gates."""
    return torch.cat([matrix, matrix.new_zeros(shape[0] - matrix.shape[0], shape[1])])
