"""Cache of a layer whose heads hold different things: a cache for each part of its heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ratplus.model.block_layer import BlockLayer
from ratplus.model.cache_chunk import AnyLayer, Chunk, Room
from ratplus.model.cache_layer import LayerCache
from ratplus.model.head_parts import HeadPart
from ratplus.model.snap_layer import SnapLayer


def empty_layer(room: Room, parts: tuple[HeadPart, ...], layer: int, group: int) -> AnyLayer:
    """The cache of layer number `layer`, with `group` query heads a head of keys."""
    if len(parts) == 1:
        return _of_part(room, parts[0], layer, group)
    order = [head for part in parts for head in part.heads]
    return PartsLayer(
        [(part, _of_part(room, part, layer, group)) for part in parts], room.positions,
        torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=room.device),
        [(_index(part, 1, room.device), _index(part, group, room.device)) for part in parts],
        group,
    )  # fmt: skip


def _of_part(room: Room, part: HeadPart, layer: int, group: int) -> AnyLayer:
    if part.kind == "blocks":
        return BlockLayer.empty(room, part, layer)
    return SnapLayer.empty(room, part, group) if part.kind == "snap" else LayerCache.empty(room, part.row)


def _index(part: HeadPart, group: int, device: torch.device) -> slice | Tensor:
    """Which heads of keys (group 1) or of queries a part has; a tensor that the cache owns, or a slice."""
    index = part.index(device, group)
    return index if isinstance(index, slice) else index.clone()


@dataclass
class PartsLayer:
    """One layer's cache, of several parts; see `AnyLayer`."""

    parts: list[tuple[HeadPart, AnyLayer]]
    positions: Tensor
    order: Tensor  # int64 [H_kv]: where each key head stands in the parts, one after the other
    index: list[tuple[slice | Tensor, slice | Tensor]]  # of each part: heads of keys, heads of queries
    group: int  # query heads a head of keys

    @property
    def state(self) -> tuple[Tensor, Tensor] | None:
        """Put together anew: to be read, not written to."""
        states = [layer.state for _, layer in self.parts]
        found = [state for state in states if state is not None]
        if not found:
            return None
        k, v = (torch.cat(pieces, dim=1).index_select(1, self.order) for pieces in zip(*found))
        return k, v

    def buffers(self) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for _, layer in self.parts:
            for kind, tensors in layer.buffers().items():
                found.setdefault(kind, []).extend(tensors)
        return found

    def branch(self, index: Tensor, positions: Tensor) -> PartsLayer:
        return replace(self, parts=[(part, x.branch(index, positions)) for part, x in self.parts], positions=positions)

    def begin_decoding(self, lengths: list[int]) -> None:
        for _, layer in self.parts:
            layer.begin_decoding(lengths)

    def rewind(self, length: int, reopened: bool) -> None:
        for _, layer in self.parts:
            layer.rewind(length, reopened)

    def attend_chunk(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk) -> Tensor:
        return self._joined([
            layer.attend_chunk(q[:, queries], k[:, keys], v[:, keys], chunk)
            for (_, layer), (keys, queries) in zip(self.parts, self.index)
        ])  # fmt: skip

    def store_chunk(self, k: Tensor, v: Tensor, chunk: Chunk, final: tuple[Tensor, Tensor] | None) -> None:
        for (_, layer), (keys, _) in zip(self.parts, self.index):
            own = None if final is None else (final[0][:, keys], final[1][:, keys])
            layer.store_chunk(k[:, keys], v[:, keys], chunk, own)

    def step(self, q: Tensor, k: Tensor, v: Tensor, logit: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return self._joined([
            layer.step(q[:, queries], k[:, keys], v[:, keys], None if logit is None else logit[:, keys], rope)
            for (_, layer), (keys, queries) in zip(self.parts, self.index)
        ])  # fmt: skip

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        """Outputs [B, heads of the part, ...] of all parts as [B, H, ...]."""
        together = torch.cat(pieces, dim=1).unflatten(1, (-1, self.group))
        return together.index_select(1, self.order).flatten(1, 2)
