"""What the caches of all layers share: the size of a cache, and the chunk of tokens that a prefill brings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


def to_device(numbers: list[int], device: torch.device) -> Tensor:
    """int64 [len(numbers)] on `device`; on CUDA from pinned memory, since any other copy makes the host wait."""
    held = torch.tensor(numbers, dtype=torch.int64)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)


@dataclass(frozen=True)
class Chunk:
    """The next tokens of every sequence: how many each holds already, and how many of `width` are real.

    `start` is the position of the first token if all sequences stand there and none is padded, else None.
    `real_B` (int64 [B], real tokens of each) and `real_BT` (bool [B, T]) are None if nothing is padded.
    """

    width: int
    held: list[int]
    new: list[int]
    start: int | None
    real_B: Tensor | None
    real_BT: Tensor | None

    @classmethod
    def of(cls, held: list[int], new: list[int], width: int, device: torch.device) -> Chunk:
        if all(n == width for n in new):
            return cls(width, held, new, held[0] if len(set(held)) == 1 else None, None, None)
        real_B = to_device(new, device)
        return cls(width, held, new, None, real_B, torch.arange(width, device=device) < real_B[:, None])

    @property
    def ends(self) -> list[int]:
        """Tokens that each sequence holds after the chunk."""
        return [held + new for held, new in zip(self.held, self.new)]

    def places(self, token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the tokens [B, S] or [S] of each sequence are in the chunk, and where: bool and int64 [B, 1, S, 1].

        `positions` int64 [B], the tokens that each sequence held before it.
        """
        held = positions[:, None]
        fresh = (token >= held) & (token < self.ends_B(positions)[:, None])
        return fresh[:, None, :, None], (token - held).clamp_(0, self.width - 1)[:, None, :, None]

    def ends_B(self, positions: Tensor) -> Tensor:
        """`ends` on the device, int64 [B]."""
        return positions + (self.width if self.real_B is None else self.real_B)

    def moved(self, by: list[int]) -> Chunk:
        """The same tokens, as sequences that hold so many fewer before it see them."""
        held = [before - gone for before, gone in zip(self.held, by)]
        together = self.real_B is None and len(set(held)) == 1
        return replace(self, held=held, start=held[0] if together else None)


def put(old: Tensor, new: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """`old` [B, heads, S, d] with what a chunk's `new` [B, heads, T, d] has in its place, by `Chunk.places`."""
    fresh, column = places
    found = new.gather(2, column.expand(-1, new.shape[1], -1, new.shape[3])).to(old.dtype)
    return torch.where(fresh, found, old)


def keep_state(state: tuple[Tensor, Tensor] | None, final: tuple[Tensor, Tensor] | None) -> None:
    """Write the recurrent state after a chunk into that of a cache; without a recurrence there is none."""
    if final is not None:
        assert state is not None  # only a recurrence ends in a state
        for held, new in zip(state, final):
            held.copy_(new)


@dataclass(frozen=True)
class Room:
    """How large a cache is, and where.

    Attributes:
        max_len: tokens that each of `batch` sequences may hold.
        positions: int64 [B], tokens held so far: one tensor for all layers.
        recurrence: whether there is a recurrent state.
    """

    batch: int
    max_len: int
    d_head: int
    positions: Tensor
    dtype: torch.dtype
    recurrence: bool

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros [batch, *shape]."""
        return torch.zeros(self.batch, *shape, device=self.device, dtype=dtype or self.dtype)

    def state(self, heads: int) -> tuple[Tensor, Tensor] | None:
        """An empty recurrent state of so many key heads, float32; None without a recurrence."""
        if not self.recurrence:
            return None
        return self.zeros(heads, self.d_head, dtype=torch.float32), self.zeros(heads, self.d_head, dtype=torch.float32)


class HeldLayer(Protocol):
    """What one layer holds of the past, whatever its mixer is."""

    def begin_decoding(self, lengths: list[int]) -> None:
        """Before the first step: the prompts end here, at so many tokens."""
        ...

    def rewind(self, length: int, reopened: bool) -> None:
        """The sequences stand at `length` tokens, as `positions` has it; `reopened`: their prompts go on there."""
        ...

    def branch(self, index: Tensor, positions: Tensor) -> HeldLayer:
        """A copy of the rows `index` of the batch, which stand at `positions`."""
        ...

    def buffers(self) -> dict[str, list[Tensor]]:
        """What is held, by what it is: "kv", "state", and where there are any "metadata" and "queries"."""
        ...


class AnyLayer(HeldLayer, Protocol):
    """The cache of one layer of attention, whatever its heads hold. B sequences, H heads, H_kv of keys, all rotated."""

    @property
    def positions(self) -> Tensor:
        """int64 [B], tokens held so far; shared by all layers."""
        ...

    @property
    def state(self) -> tuple[Tensor, Tensor] | None:
        """Un-rotated recurrent (k, v), float32 [B, H_kv, d_head]; None without a recurrence."""
        ...

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        """Attention [B,H,T,d] of a chunk over what is held and over itself; q [B,H,T,d], k, v [B,H_kv,T,d]."""
        ...

    def store_chunk(self, k: Tensor, v: Tensor, chunk: Chunk, final: tuple[Tensor, Tensor] | None) -> None:
        """Keep what later queries may see of a chunk, after it has attended, and the recurrent state after it."""
        ...

    def step(self, q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """One token a sequence: q [B, H, d], k, v and gate logit [B, H_kv, d], un-rotated; returns [B, H, d]."""
        ...

    def branch(self, index: Tensor, positions: Tensor) -> AnyLayer:
        """A copy of the rows `index` of the batch, which stand at `positions`."""
        ...
