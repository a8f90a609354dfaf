"""The feed-forward half of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ratplus.config.model import ModelConfig


class FeedForward(nn.Module):
    """Pre-norm feed-forward with residual: GELU, or SwiGLU, whose `up` has the rows of the gate first."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.d_model
        self.norm = nn.RMSNorm(d, eps=config.norm_eps)
        self.gated = config.ffn == "swiglu"
        self.up = nn.Linear(d, (1 + self.gated) * config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, d, bias=False)

    def forward(self, x_BTd: Tensor) -> Tensor:
        z = self.up(self.norm(x_BTd))
        if self.gated:
            gate, up = z.chunk(2, dim=-1)
            return x_BTd + self.down(F.silu(gate) * up)
        return x_BTd + self.down(F.gelu(z))
