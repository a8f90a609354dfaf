"""The compact KV cache of a model: per head I sinks, a ring of the last tokens, and the dilated keys; plus the state.

What one layer holds and where is in `ratplus.model.cache_layer`; here are the batch's lengths, and making a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ratplus.config.model import ModelConfig
from ratplus.kernels.attention.patterns import pattern_tensors
from ratplus.kernels.decode.layout import slot_count
from ratplus.model.cache_layer import Chunk, HeadGroup, LayerCache
from ratplus.model.kernel_pattern import kernel_pattern
from ratplus.pattern import Pattern, PatternMap


@dataclass
class KVCache:
    """Compact cache of a whole model for a batch of sequences, each at its own position."""

    patterns: PatternMap
    kv_heads: int | None  # heads that hold keys and values, a layer; None: all
    layers: list[LayerCache]
    positions: Tensor  # int64 [B] on the model's device
    max_len: int
    # The same on the host, so that an overrun is seen without waiting for the device: tokens of each sequence, and
    # decoding steps since, which all sequences took together and which `lengths` adds.
    held: list[int]
    stepped: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens that each sequence holds."""
        if self.stepped:
            self.held = [held + self.stepped for held in self.held]
            self.stepped = 0
        return self.held

    @classmethod
    def empty(cls, config: ModelConfig, patterns: PatternMap, batch: int, max_len: int, device, dtype) -> KVCache:
        if batch < 1 or max_len < 1:
            raise ValueError(f"cache: batch={batch} and max_len={max_len} must both be ≥ 1")
        positions = torch.zeros(batch, dtype=torch.int64, device=device)
        layers = []
        for row in patterns.per_kv_head(config.kv_heads):
            row = tuple(_bounded(p, max_len) for p in row)
            counts = [_slots(p, max_len) for p in row]
            offsets = [0, *accumulate(counts)]
            groups = [
                HeadGroup.of(
                    pattern, [h for h, p in enumerate(row) if p == pattern], offsets, _slots(pattern, max_len), device
                )
                for pattern in dict.fromkeys(row)
            ]
            shape = (batch, offsets[-1], config.d_head)
            state = None
            if config.recurrence:
                shape_of_state = (batch, config.key_heads, config.d_head)
                state = torch.zeros(shape_of_state, device=device), torch.zeros(shape_of_state, device=device)
            setting = kernel_pattern(row, torch.device(device))
            # Tensors of its own, not those that `kernel_pattern` shares and may drop.
            dilations, windows, sinks = pattern_tensors(*setting, config.key_heads, torch.device(device))
            owned = dilations.clone(), windows.clone(), sinks.clone()
            layers.append(
                LayerCache(
                    keys=torch.zeros(shape, device=device, dtype=dtype),
                    values=torch.zeros(shape, device=device, dtype=dtype),
                    state=state, positions=positions, setting=setting, step_setting=owned,
                    offsets=torch.tensor(offsets, device=device), groups=groups,
                )
            )  # fmt: skip
        return cls(patterns, config.kv_heads, layers, positions, max_len, [0] * batch)

    def chunk(self, lengths: list[int] | None, width: int, batch: int) -> Chunk:
        """The next `width` tokens of each sequence, of which `lengths` are real (None: all).

        Raises ValueError for what does not fit: another batch size, lengths outside the chunk, or an overrun.
        """
        held = self.lengths
        new = [width] * batch if lengths is None else lengths
        if batch != len(held):
            raise ValueError(f"cache: made for {len(held)} sequences, got {batch}")
        if len(new) != batch or any(n < 0 or n > width for n in new):
            raise ValueError(f"lengths: got {new}; give {batch} numbers between 0 and the chunk's width {width}")
        self._check_room(new)
        return Chunk.of(held, new, width, self.positions.device)

    def check_step(self, batch: int) -> None:
        """Raises ValueError if `batch` sequences can't take one more token each: another batch size, or an overrun."""
        if batch != len(self.held):
            raise ValueError(f"cache: made for {len(self.held)} sequences, got {batch}")
        if max(self.held) + self.stepped >= self.max_len:
            self._check_room([1] * batch)

    def _check_room(self, new: list[int]) -> None:
        for row, (held, more) in enumerate(zip(self.lengths, new)):
            if held + more > self.max_len:
                raise ValueError(
                    f"cache overrun: sequence {row} holds {held} tokens and gets {more} more, but the cache was made "
                    f"for max_len={self.max_len}; make it larger with new_cache(..., max_len=...)"
                )

    def advance(self, chunk: Chunk) -> None:
        """Move every sequence on by the chunk's real tokens."""
        self.held = [held + new for held, new in zip(chunk.held, chunk.new)]
        self.positions += chunk.width if chunk.real_B is None else chunk.real_B

    def count_step(self) -> None:
        """The host's half of a decoding step; the positions on the device are moved by the step itself."""
        self.stepped += 1

    def rewind(self, length: int = 0) -> None:
        """Every sequence stands at `length` tokens, with an empty recurrent state; the slots keep what they hold.

        At 0 the cache is as good as new. Raises ValueError if length is not between 0 and max_len.
        """
        if not 0 <= length <= self.max_len:
            raise ValueError(f"cache: cannot stand at {length} tokens; it was made for max_len={self.max_len}")
        self.held, self.stepped = [length] * len(self.held), 0
        self.positions.fill_(length)
        for layer in self.layers:
            for state in layer.state or ():
                state.zero_()

    def kv_entries(self) -> list[list[list[int]]]:
        """Entries held, [layers][key heads][B]: what the next query will see besides itself at most."""
        held = self.patterns.per_kv_head(self.kv_heads)
        return [[[p.kv_entries(n) for n in self.lengths] for p in row] for row in held]

    def bytes(self) -> int:
        """Bytes that the cache occupies: keys, values and recurrent state of all layers."""
        return self.kv_bytes() + self.state_bytes()

    def kv_bytes(self) -> int:
        """Bytes of the key and value slots of all layers."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in (layer.keys, layer.values))

    def state_bytes(self) -> int:
        """Bytes of the recurrent state of all layers; 0 without a recurrence."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.state or ())


def _bounded(pattern: Pattern, max_len: int) -> Pattern:
    """The pattern that sees the same keys of at most max_len tokens, and needs no more slots than that."""
    p = pattern.canonical
    return Pattern(p.dilation, min(p.window, max_len - 1), min(p.sinks, max_len))


def _slots(pattern: Pattern, max_len: int) -> int:
    return slot_count(pattern.dilation, pattern.window, pattern.sinks, max_len)
