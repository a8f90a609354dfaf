"""Heads of one layer, apart by the operator that serves them: static patterns, selected blocks, and SnapKV."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ratplus.kernels.blocks.selection import layer_seed
from ratplus.model.kernel_pattern import kernel_pattern
from ratplus.pattern import Pattern


@dataclass(frozen=True)
class HeadPart:
    """Key heads that one call of an operator serves.

    Attributes:
        kind: "static", "blocks" or "snap".
        heads: their indices in the layer.
        row: their patterns, canonical.
    """

    kind: str
    heads: tuple[int, ...]
    row: tuple[Pattern, ...]

    @property
    def pattern(self) -> Pattern:
        """One of them: all that blocks differ in is `top` and the static part."""
        return self.row[0]

    def index(self, device: torch.device, group: int = 1) -> slice | Tensor:
        """The heads as an index, a slice where they stand side by side; with `group`, those of their queries."""
        first, count = self.heads[0], len(self.heads)
        if self.heads == tuple(range(first, first + count)):
            return slice(first * group, (first + count) * group)
        return _index(tuple(head * group + i for head in self.heads for i in range(group)), device)

    def static_setting(self, device: torch.device) -> tuple[Any, Any, Any]:
        """(dilation, window, sinks) of the static part, as the kernels take them."""
        if self.kind == "static":
            return kernel_pattern(self.row, device)
        # Blocks of kept keys replace the dilation: other kept keys are hidden.
        rows = [(None if p.over == "kept" else p.dilation, p.window, p.sinks) for p in self.row]
        if len(set(rows)) == 1:
            return rows[0]
        dilation, window, sinks = zip(*((-1 if d is None else d, w, i) for d, w, i in rows), strict=True)
        return _numbers(dilation, device), _numbers(window, device), _numbers(sinks, device)

    def block_setting(self, layer: int, length: int, device: torch.device) -> dict[str, Any]:
        """How the heads select blocks of at most `length` tokens, as the operators of blocks take it."""
        p = self.pattern
        stride = p.dilation or 1 if p.over == "kept" else 1
        # More blocks than there are would only be empty places; the forced ones count even then.
        most = max(1 + p.first, -(-length // (p.block * stride)))
        tops = [min(_top(p), most) for p in self.row]
        drawn = {"seed": layer_seed(p.seed, layer), "heads": _index(self.heads, device)} if p.score == "random" else {}
        return {
            "top": tops[0] if len(set(tops)) == 1 else _numbers(tuple(tops), device), "slots": max(tops),
            "block": p.block, "score": p.score, "first": p.first,
            "stride": stride, **drawn,
        }  # fmt: skip


@lru_cache(maxsize=512)
def head_parts(row: tuple[Pattern, ...]) -> tuple[HeadPart, ...]:
    """The parts of a layer whose key heads have these patterns; one for most layers."""
    found: dict[tuple, list[int]] = {}
    row = tuple(p.canonical for p in row)
    for head, p in enumerate(row):
        if not p.data_dependent:
            key: tuple = ("static",)
        elif p.snap is not None:
            key = ("snap", p)
        else:
            stride = p.dilation if p.over == "kept" else 1
            key = ("blocks", p.block, p.score, p.first, p.phase, stride, p.seed)
        found.setdefault(key, []).append(head)
    return tuple(HeadPart(key[0], tuple(heads), tuple(row[h] for h in heads)) for key, heads in found.items())


def heads_in_order(parts: tuple[HeadPart, ...], group: int, device: torch.device) -> Tensor:
    """int64 [H]: where each query head stands in the parts' heads, one part after the other."""
    order = [head * group + i for part in parts for head in part.heads for i in range(group)]
    return _index(tuple(sorted(range(len(order)), key=order.__getitem__)), device)


def _top(p: Pattern) -> int:
    assert p.top is not None
    return p.top


@lru_cache(maxsize=512)
def _index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    # Kept for all calls: tensors of an inference mode could not be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(heads, dtype=torch.int64, device=device)


@lru_cache(maxsize=512)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.int32, device=device)
