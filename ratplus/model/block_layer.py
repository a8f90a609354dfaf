"""Cache of the heads of a layer that select blocks: all keys and values, and what stands for each complete block.

Every key is held, since any block may be asked for later: selecting saves what a step reads, not what is held. Keys are
cached as attention uses them, after the recurrence and rotated, and a block's metadata is computed from the cached keys
when its last token arrives, by the same function in a prompt and in a step. What stands in the cache behind a
sequence's end, and metadata of blocks that are not complete, is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import block_attention, block_decode_attention, dilated_attention
from ratplus.kernels.attention.patterns import int_tensor, pattern_tensors
from ratplus.kernels.blocks.metadata import metadata_dtype, summarise
from ratplus.kernels.blocks.settings import Blocks
from ratplus.model.cache_chunk import Chunk, Room, keep_state, put
from ratplus.model.head_parts import HeadPart


@dataclass
class BlockLayer:
    """One layer's cache for key heads whose patterns select blocks in the same way; see `AnyLayer`."""

    keys: Tensor  # [B, H_kv, max_len, d_head], rotated
    values: Tensor  # as keys
    metadata: Tensor  # [B, H_kv, max_len // span, parts, d_head], of `block_metadata`
    state: tuple[Tensor, Tensor] | None
    positions: Tensor
    phase: str
    setting: tuple[Any, Any, Any]  # dilation, window, sinks, as `block_attention` takes them
    selection: dict[str, Any]  # its other settings
    # For a decoding step: int32 [H_kv] dilation, window, sinks, top, and the heads' indices. The layer owns them,
    # because a captured graph reads them where they lie.
    step_setting: tuple[Tensor, Tensor, Tensor]
    step_selection: dict[str, Any]
    decoding: bool = False  # the prompt has ended

    @classmethod
    def empty(cls, room: Room, part: HeadPart, layer: int) -> BlockLayer:
        heads, device = len(part.heads), room.device
        setting, selection = part.static_setting(device), part.block_setting(layer, room.max_len, device)
        blocks = _blocks(selection)
        tensors = pattern_tensors(*setting, heads, device)
        # Where steps are dense instead of selecting: every key is static, and no block is read.
        dense = part.pattern.phase == "prefill"
        if dense:
            tensors = pattern_tensors(1, 0, 0, heads, device)
        top = 0 if dense else selection["top"]
        numbers = torch.tensor(part.heads, device=device)
        keys = room.zeros(heads, room.max_len, room.d_head)
        count = room.max_len // blocks.span
        metadata = room.zeros(heads, count, blocks.parts, room.d_head, dtype=metadata_dtype(blocks.score, room.dtype))
        return cls(
            keys=keys, values=torch.zeros_like(keys), metadata=metadata, state=room.state(heads),
            positions=room.positions, phase=part.pattern.phase, setting=setting, selection=selection,
            step_setting=(tensors[0].clone(), tensors[1].clone(), tensors[2].clone()),
            step_selection=selection | {"top": int_tensor(top, heads, device).clone(), "heads": numbers},
        )  # fmt: skip

    def buffers(self) -> dict[str, list[Tensor]]:
        return {"kv": [self.keys, self.values], "metadata": [self.metadata], "state": [*(self.state or ())]}

    def branch(self, index: Tensor, positions: Tensor) -> BlockLayer:
        state = None if self.state is None else (self.state[0][index], self.state[1][index])
        held = {name: getattr(self, name)[index] for name in ("keys", "values", "metadata")}
        return replace(self, **held, state=state, positions=positions)

    def begin_decoding(self, lengths: list[int]) -> None:
        self.decoding = True

    def rewind(self, length: int, reopened: bool) -> None:
        """All keys are still there, and the metadata of complete blocks is right; others is written when they are."""
        self.decoding = self.decoding and not reopened

    # ---- prompts -----------------------------------------------------------------------------------------------

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        """As of `AnyLayer`. The chunk is written first: queries select among blocks that it completes."""
        self._write(k, v, chunk)
        dense = self.phase == ("prefill" if self.decoding else "decode")
        if dense and max(chunk.held) == 0:
            return dilated_attention(q, k, v, 1, 0, 0)
        end = max(chunk.held) + chunk.width
        keys, values = (x[:, :, :end].to(q.dtype) for x in (self.keys, self.values))
        if end > keys.shape[2]:  # padding that reaches behind the cache
            keys, values = (F.pad(x, (0, 0, 0, end - x.shape[2])) for x in (keys, values))
        setting, selection = self.setting, self.selection
        if dense:
            setting, selection = (1, 0, 0), selection | {"top": 0, "slots": 1}
        start = self.positions if chunk.start is None else chunk.start
        blocks = end // _blocks(selection).span
        given: dict[str, Any] = selection | {"start": start, "metadata": self.metadata[:, :, :blocks]}
        return block_attention(q, keys, values, *setting, **given)

    def store_chunk(self, k: Tensor, v: Tensor, chunk: Chunk, final: tuple[Tensor, Tensor] | None) -> None:
        """As of `AnyLayer`; keys and values are written already."""
        keep_state(self.state, final)

    def _write(self, k: Tensor, v: Tensor, chunk: Chunk) -> None:
        low, high = min(chunk.held), max(chunk.ends)
        if chunk.start is not None:
            self.keys[:, :, low:high], self.values[:, :, low:high] = k, v
        else:
            places = chunk.places(torch.arange(low, high, device=k.device), self.positions)
            for held, new in ((self.keys, k), (self.values, v)):
                held[:, :, low:high] = put(held[:, :, low:high], new, places)
        blocks = _blocks(self.selection)
        first, last = low // blocks.span, high // blocks.span
        if first < last:
            # Rows whose sequence has not come so far get what is written again when their block is complete.
            complete = self.keys[:, :, first * blocks.span : last * blocks.span]
            self.metadata[:, :, first:last] = summarise(complete, blocks)

    # ---- steps -------------------------------------------------------------------------------------------------

    def step(self, q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return block_decode_attention(
            q, k, v, logit, self.keys, self.values, self.metadata, self.state, self.positions,
            *self.step_setting, rope=rope, **self.step_selection,
        )  # fmt: skip


def _blocks(selection: dict[str, Any]) -> Blocks:
    """How keys are cut into blocks and ranked."""
    return Blocks(*(selection[name] for name in ("block", "score", "first", "stride")))
