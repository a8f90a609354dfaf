"""The KV cache of a model: what each layer holds, and where the sequences of a batch stand.

Static patterns have a compact cache (`ratplus.model.cache_layer`): per head I sinks, a ring of the last tokens, and the
dilated keys. Heads that select blocks hold all keys and what they select by (`block_layer`); SnapKV holds the prompt
until it ends (`snap_layer`); a layer that has several of these holds each for its heads (`parts_layer`). Mixers other
than attention hold states of a fixed size (`state_mixer`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ratplus.config.model import ModelConfig
from ratplus.model.cache_chunk import Chunk, HeldLayer, Room
from ratplus.model.head_parts import head_parts
from ratplus.model.parts_layer import empty_layer
from ratplus.model.state_mixer import StateLayer
from ratplus.pattern import PatternMap


@dataclass
class KVCache:
    """Cache of a whole model for a batch of sequences, each at its own position."""

    patterns: PatternMap
    kv_heads: int | None  # heads that hold keys and values, a layer; None: all
    layers: list[HeldLayer]
    positions: Tensor  # int64 [B] on the model's device
    max_len: int
    # The same on the host, so that an overrun is seen without waiting for the device: tokens of each sequence, and
    # decoding steps since, which all sequences took together and which `lengths` adds.
    held: list[int]
    stepped: int = 0
    # Tokens of each sequence's prompt, which ends at the first step; None: nothing has been generated yet.
    prompts: list[int] | None = None
    # Whether keys and values are held at all: mixers other than attention hold states alone.
    entries: bool = True

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
        room = Room(batch, max_len, config.d_head, positions, dtype, config.recurrence)
        if not config.attends:
            states: list[HeldLayer] = [StateLayer.empty(room, config.state_shape) for _ in range(config.layers)]
            return cls(patterns, None, states, positions, max_len, [0] * batch, entries=False)
        rows = patterns.per_kv_head(config.kv_heads)
        layers: list[HeldLayer] = [
            empty_layer(room, head_parts(row), layer, config.group) for layer, row in enumerate(rows)
        ]
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

    def begin_step(self, batch: int) -> None:
        """The host's half of a decoding step that comes before the device's; the first step ends the prompts.

        Raises ValueError as `check_step` does.
        """
        self.check_step(batch)
        if self.prompts is None:
            self.prompts = list(self.lengths)
            for layer in self.layers:
                layer.begin_decoding(self.prompts)

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

        At 0 the cache is as good as new. Before the end of a prompt, the prompt ends at the next step instead. A window
        or a recurrent state of before is not restored.

        Raises:
            ValueError: length is not between 0 and max_len, or (but for 0) SnapKV can't go there: it has cut the prompt
                behind it, or has to know the prompt's last queries, which newer ones have replaced.
        """
        if not 0 <= length <= self.max_len:
            raise ValueError(f"cache: cannot stand at {length} tokens; it was made for max_len={self.max_len}")
        if length and self.compresses and length < max(self.lengths if self.prompts is None else self.prompts):
            prompt = max(self.lengths if self.prompts is None else self.prompts)
            why = "reads its last queries" if self.prompts is None else "has cut it, and what it dropped is gone"
            raise ValueError(
                f"cache: cannot stand at {length} tokens, within a prompt of {prompt}: SnapKV {why}; rewind to 0, or "
                "to the prompt's end or later"
            )
        reopened = self.prompts is not None and length < max(self.prompts)
        self.prompts = None if reopened else self.prompts
        self.held, self.stepped = [length] * len(self.held), 0
        self.positions.fill_(length)
        for layer in self.layers:
            layer.rewind(length, reopened)
            for state in layer.buffers()["state"]:
                state.zero_()

    def branch(self, rows: list[int]) -> KVCache:
        """A cache of its own whose sequences are copies of these rows."""
        index = torch.tensor(rows, device=self.positions.device)
        positions, held = self.positions[index], [self.lengths[row] for row in rows]
        prompts = None if self.prompts is None else [self.prompts[row] for row in rows]
        layers = [layer.branch(index, positions) for layer in self.layers]
        return replace(self, layers=layers, positions=positions, held=held, stepped=0, prompts=prompts)

    @property
    def compresses(self) -> bool:
        """Whether some head drops entries at the end of a prompt (SnapKV), and so moves to other tensors there."""
        return any(p.snap is not None for row in self.patterns for p in row)

    def kv_entries(self) -> list[list[list[int]]]:
        """Entries held, [layers][key heads][B]: what later queries will see at most; 0 of a mixer with a state."""
        if not self.entries:
            return [[[0] * len(self.lengths) for _ in row] for row in self.patterns]
        held = self.patterns.per_kv_head(self.kv_heads)
        # A prompt that has not ended is held whole.
        ends = [n + 1 for n in self.lengths] if self.prompts is None else self.prompts
        return [[[p.kv_entries(n, end) for n, end in zip(self.lengths, ends)] for p in row] for row in held]

    def bytes(self) -> int:
        """Bytes that the cache occupies: keys, values, what blocks are selected by, and recurrent state of all layers.

        With SnapKV before the first step also the last queries of the prompts.
        """
        return sum(_bytes(found) for layer in self.layers for found in layer.buffers().values())

    def kv_bytes(self) -> int:
        """Bytes of the key and value slots of all layers."""
        return self._bytes_of("kv")

    def metadata_bytes(self) -> int:
        """Bytes of what blocks are selected by: means, or smallest and largest channels; 0 if none are selected."""
        return self._bytes_of("metadata")

    def state_bytes(self) -> int:
        """Bytes of the recurrent state of all layers, with a mixer's convolution; 0 without a recurrence."""
        return self._bytes_of("state")

    def _bytes_of(self, kind: str) -> int:
        return sum(_bytes(layer.buffers().get(kind, [])) for layer in self.layers)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
