"""Cache of a layer whose mixer is no attention: the states of its heads, and the last inputs of its convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratplus.config.mixer import CONVOLUTION, StateShape
from ratplus.kernels.linear_attention.reference import state_type
from ratplus.model.cache_chunk import Chunk, Room


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
