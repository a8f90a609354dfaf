"""The RAT+ language model: the network, and generation with it, joined in one class."""

from __future__ import annotations

import torch

from ratplus.config.model import ModelConfig
from ratplus.model import generate as generation  # the module, which keeps its name in this package
from ratplus.model.network import Network

__all__ = ["RATPlus", "empty_model"]


class RATPlus(Network):
    """Decoder-only language model with run-time sparse patterns: `Network`, and `generate` to continue prompts with it.

    Args:
        config: shape of the model; `recurrence=False` gives the attention-only baseline.
    """

    generate = generation.generate


def empty_model(config: ModelConfig) -> RATPlus:
    """A model whose weights are whatever lay in memory: drawing billions of numbers that nobody uses takes minutes."""
    with torch.device("meta"):
        model = RATPlus(config)
    assert not list(model.buffers())  # they would be lost
    return model.to_empty(device="cpu")
