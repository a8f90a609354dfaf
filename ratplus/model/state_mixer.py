"""Mixers whose past is a state of fixed size, in the place of attention: Mamba2 and Gated DeltaNet.

Both project the normed input once, pass values, keys and queries through a short causal convolution and SiLU, run them
through a linear recurrence over matrices (`ratplus.kernels.linear_attention`), and gate what is read before the output
projection. There are no positions and no patterns, and decoding holds the states and the convolution's last inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ratplus.config.mixer import CONVOLUTION, MAMBA2, StateShape
from ratplus.config.model import ModelConfig
from ratplus.kernels import gated_delta_rule, linear_attention_step, ssd
from ratplus.kernels.linear_attention.reference import state_type
from ratplus.model.cache_chunk import Chunk, Room

# Where step sizes and decay rates start, as in both papers' code: a step between the first two, log-uniformly, and a
# rate between the last two, so that a state keeps from a few tokens to a thousand.
_STEPS, _RATES = (1e-3, 1e-1), (1.0, 16.0)


# What the recurrence takes: q, k [B, H or 1, T, d_state], v [B, H, T, d_head], log_decay and beta [B, H, T]; beta is
# None without the delta rule.
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


@dataclass
class StateLayer:
    """One layer's cache, of the same size at any length; see `HeldLayer`.

    Attributes:
        state: [B, H, d_state, d_head], float32 whatever the model's type.
        inputs: [B, CONVOLUTION - 1, channels], the last tokens' values, keys and queries before the convolution.
    """

    state: Tensor
    inputs: Tensor

    @classmethod
    def empty(cls, room: Room, shape: StateShape) -> StateLayer:
        state = room.zeros(shape.heads, shape.d_state, shape.d_head, dtype=state_type(room.dtype))
        return cls(state, room.zeros(CONVOLUTION - 1, shape.convolved))

    def store_chunk(self, padded_BTc: Tensor, chunk: Chunk, final: Tensor) -> None:
        """Keep what a chunk leaves.

        Args:
            padded_BTc: `inputs` of before the chunk and behind them those of its tokens.
            final: states after the last real token of each sequence.
        """
        self.state.copy_(final)
        kept = self.inputs.shape[1]
        if chunk.real_B is None:
            self.inputs.copy_(padded_BTc[:, -kept:])
            return
        # A sequence of n real tokens ends before place kept + n.
        places = torch.arange(kept, device=padded_BTc.device) + chunk.real_B[:, None]
        self.inputs.copy_(padded_BTc.gather(1, places[..., None].expand(-1, -1, padded_BTc.shape[2])))

    def begin_decoding(self, lengths: list[int]) -> None:
        """Nothing changes: prompt and generated tokens are held alike."""

    def rewind(self, length: int, reopened: bool) -> None:
        """Nothing to move: `KVCache.rewind` empties the buffers of the kind "state", which is all there is."""

    def branch(self, index: Tensor, positions: Tensor) -> StateLayer:
        return StateLayer(self.state[index], self.inputs[index])

    def buffers(self) -> dict[str, list[Tensor]]:
        return {"kv": [], "state": [self.state, self.inputs]}


class StateMixer(nn.Module):
    """Pre-norm temporal mixing with residual; `Mamba2Mixer` and `DeltaMixer` say what goes into the recurrence."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.shape = shape = config.state_shape
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        # Rows: gate, what is convolved (values, keys, queries), scalars of each head.
        self.sizes = [shape.width, shape.convolved, shape.scalars]
        self.in_proj = nn.Linear(config.d_model, shape.projected, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(shape.convolved, CONVOLUTION))
        self.conv_bias = nn.Parameter(torch.empty(shape.convolved)) if config.mixer == MAMBA2 else None
        self.log_rate = nn.Parameter(torch.empty(shape.heads))  # so that the rate of decay stays above 0
        self.step_bias = nn.Parameter(torch.empty(shape.heads))
        # Mamba2's is over all channels, Gated DeltaNet's over those of a head.
        self.out_norm = nn.RMSNorm(shape.d_head if shape.delta else shape.width, eps=config.norm_eps)
        self.out_proj = nn.Linear(shape.width, config.d_model, bias=False)

    @staticmethod
    def of(config: ModelConfig) -> StateMixer:
        return Mamba2Mixer(config) if config.mixer == MAMBA2 else DeltaMixer(config)

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """What weight decay would pull to a value of no meaning."""
        return [self.log_rate, self.step_bias]

    def reset_state_parameters(self, generator: torch.Generator | None) -> None:
        """Draw what is neither a matrix nor a norm; with a generator of the CPU, the same on every device."""

        def draw(parameter: nn.Parameter, low: float, high: float) -> Tensor:
            if generator is None:
                return parameter.new_empty(parameter.shape).uniform_(low, high)
            drawn = torch.empty(parameter.shape).uniform_(low, high, generator=generator)
            return drawn.to(parameter.device, parameter.dtype)

        bound = CONVOLUTION**-0.5
        if self.conv_bias is not None:
            self.conv_bias.zero_()
        self.conv_weight.copy_(draw(self.conv_weight, -bound, bound))
        self.log_rate.copy_(draw(self.log_rate, *_RATES).log())
        steps = draw(self.step_bias, *(math.log(step) for step in _STEPS)).exp()
        self.step_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    # ---- passes ------------------------------------------------------------------------------------------------

    def forward(self, x_BTd: Tensor, _row=None, _rope=None) -> Tensor:
        gate, inputs, scalars = self._project(x_BTd)
        before = inputs.new_zeros(inputs.shape[0], CONVOLUTION - 1, inputs.shape[2])
        values, keys, queries = self._convolve(torch.cat((before, inputs), dim=1))
        y, _ = self._recur(self._operands(values, keys, queries, scalars), None)
        return self._finish(x_BTd, y, values, gate)

    def prefill(self, x_BTd: Tensor, layer: StateLayer, _rope, chunk: Chunk) -> Tensor:
        """Like forward, but after what `layer` holds, and storing what it must keep. Right padding is not real."""
        gate, inputs, scalars = self._project(x_BTd)
        padded = torch.cat((layer.inputs, inputs), dim=1)
        values, keys, queries = self._convolve(padded)
        q, k, v, log_decay, beta = self._operands(values, keys, queries, scalars)
        if chunk.real_BT is not None:
            # Nothing decays at padding and nothing is written there, so the state is that of the last real token.
            padding = ~chunk.real_BT[:, None]
            log_decay = log_decay.masked_fill(padding, 0.0)
            k = k.masked_fill(padding[..., None], 0.0)
        y, final = self._recur((q, k, v, log_decay, beta), layer.state)
        layer.store_chunk(padded, chunk, final)
        return self._finish(x_BTd, y, values, gate)

    def step(self, x_B1d: Tensor, layer: StateLayer, _rope) -> Tensor:
        """One token per sequence."""
        gate, inputs, scalars = self._project(x_B1d)
        padded = torch.cat((layer.inputs, inputs), dim=1)
        values, keys, queries = self._convolve(padded)
        layer.inputs.copy_(padded[:, 1:])
        operands = self._operands(values, keys, queries, scalars)
        q, k, v, log_decay = (x[:, :, 0] for x in operands[:4])
        beta = None if operands[4] is None else operands[4][:, :, 0]
        y = linear_attention_step(q, k, v, log_decay, beta, layer.state)
        return self._finish(x_B1d, y[:, :, None], values, gate)

    # ---- parts -------------------------------------------------------------------------------------------------

    def _project(self, x_BTd: Tensor) -> tuple[Tensor, ...]:
        return self.in_proj(self.norm(x_BTd)).split(self.sizes, dim=-1)

    def _convolve(self, padded_BTc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, H, T, d_head], keys and queries [B, H or 1, T, d_state] after convolution and SiLU.

        `padded_BTc` has CONVOLUTION - 1 tokens more, before the first one.
        """
        length = padded_BTc.shape[1] - CONVOLUTION + 1
        weight = self.conv_weight.to(padded_BTc.dtype)
        out = padded_BTc[:, :length] * weight[:, 0]
        for place in range(1, CONVOLUTION):
            out = out + padded_BTc[:, place : place + length] * weight[:, place]
        if self.conv_bias is not None:
            out = out + self.conv_bias.to(out.dtype)
        shape = self.shape
        blocks = F.silu(out).split((shape.width, shape.key_width, shape.key_width), dim=-1)
        channels = shape.d_head, shape.d_state, shape.d_state
        v, k, q = (x.unflatten(-1, (-1, d)).transpose(1, 2) for x, d in zip(blocks, channels))
        return v, k, q

    def _step_size(self, raw_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Step size and log decay [B, H, T], float32 at least: exponents in bfloat16 would forget at another rate."""
        wide = torch.promote_types(raw_BTH.dtype, torch.float32)
        step = F.softplus(raw_BTH.to(wide) + self.step_bias.to(wide)).transpose(1, 2)
        return step, -self.log_rate.to(wide).exp()[:, None] * step

    def _operands(self, values: Tensor, keys: Tensor, queries: Tensor, scalars: Tensor) -> Operands:
        """What the recurrence takes, of what `_convolve` gives and the scalars of each head [B, T, ...]."""
        raise NotImplementedError

    def _recur(self, operands: Operands, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, log_decay, beta = operands
        if beta is None:
            return ssd(q, k, v, log_decay, initial)
        return gated_delta_rule(q, k, v, log_decay, beta, initial)

    def _normed(self, y: Tensor) -> Tensor:
        # Under autocast the weights are of higher precision than what was read.
        return self.out_norm(y.to(self.out_norm.weight.dtype)).to(y.dtype)

    def _finish(self, x_BTd: Tensor, y_BHTd: Tensor, values: Tensor, gate: Tensor) -> Tensor:
        """The stream [B, T, d_model] after the mixer, of what was read from the state, the values and the gate."""
        raise NotImplementedError


class Mamba2Mixer(StateMixer):
    """Mamba2 (arXiv 2405.21060) with one group: all heads share key (B) and query (C)."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.skip = nn.Parameter(torch.empty(self.shape.heads))

    @property
    def undecayed(self) -> list[nn.Parameter]:
        return [*super().undecayed, self.skip]

    def reset_state_parameters(self, generator: torch.Generator | None) -> None:
        super().reset_state_parameters(generator)
        self.skip.fill_(1.0)

    def _operands(self, values: Tensor, keys: Tensor, queries: Tensor, scalars: Tensor) -> Operands:
        step, log_decay = self._step_size(scalars)
        return queries, keys, (step[..., None] * values).to(values.dtype), log_decay, None

    def _finish(self, x_BTd: Tensor, y_BHTd: Tensor, values: Tensor, gate: Tensor) -> Tensor:
        y = y_BHTd + self.skip.to(values.dtype)[:, None, None] * values
        y = y.transpose(1, 2).flatten(-2) * F.silu(gate)
        return x_BTd + self.out_proj(self._normed(y))


class DeltaMixer(StateMixer):
    """Gated DeltaNet (arXiv 2412.06464): keys and queries of norm 1, each head's output normed before the gate."""

    def _operands(self, values: Tensor, keys: Tensor, queries: Tensor, scalars: Tensor) -> Operands:
        raw, beta = scalars.chunk(2, dim=-1)
        _, log_decay = self._step_size(raw)
        k, q = (F.normalize(x, dim=-1, eps=1e-6).to(values.dtype) for x in (keys, queries))
        return q * self.shape.d_state**-0.5, k, values, log_decay, torch.sigmoid(beta).transpose(1, 2)

    def _finish(self, x_BTd: Tensor, y_BHTd: Tensor, values: Tensor, gate: Tensor) -> Tensor:
        y = self._normed(y_BHTd).transpose(1, 2).flatten(-2)
        return x_BTd + self.out_proj(y * F.silu(gate))
