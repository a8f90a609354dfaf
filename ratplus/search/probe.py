"""Runs one loaded model under pattern maps and keeps the losses of each row: probes, each measured once.

A map that differs from the current *base* from layer l on starts at the base's input of layer l. Those inputs are held
for one layer at a time, for all rows of the search split; so substitutions are asked for in the order of layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.data.sampling import IGNORE
from ratplus.evaluation.bad_logits import BadLogits, where_it_began
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap
from ratplus.search.damage import Values
from ratplus.search.splits import Split
from ratplus.search.store import ProbeStore, probe_key

# Labelled positions whose logits are computed at once.
_MOST_LOGITS = 1 << 24


@dataclass
class _Batch:
    """Some rows of one group on the device; `x` is their input of the layer that `Probes` stands at."""

    group: str
    tokens: Tensor
    labels: Tensor
    x: Tensor | None = None


@dataclass
class Probes:
    """Losses of a model's rows under maps, from the store where they are there.

    Attributes:
        weights: SHA-256 of the model's.
        store: None keeps nothing (a dry run).
        on_pass: called after each pass that was run, with its seconds.
        passes: passes run by this object, in whole passes through the model (one from the middle counts as a half).
    """

    model: RATPlus
    splits: dict[str, Split]
    weights: str
    store: ProbeStore | None
    batch: int = 16
    on_pass: Callable[[float], None] = lambda seconds: None
    passes: float = 0.0
    seconds: float = 0.0
    reused: int = 0
    reused_seconds: float = 0.0
    _base: PatternMap | None = None
    _layer: int = 0
    _held: list[_Batch] = field(default_factory=list)
    _seen: dict[str, Values] = field(default_factory=dict)

    @property
    def dense(self) -> PatternMap:
        return self.model.resolve_patterns(Pattern())

    def set_base(self, patterns: PatternMap) -> None:
        """The map that substitutions on the search split differ from in few layers."""
        self._base, self._layer, self._held = patterns, 0, []

    def forget(self) -> None:
        """Forget losses that are held in memory; the store keeps its own."""
        self._seen = {}

    def measured(self, patterns: PatternMap, split: str) -> bool:
        """Whether the losses are there already."""
        key = self._key(patterns, split)
        return key in self._seen or (self.store is not None and self.store.get(key) is not None)

    def losses(self, patterns: PatternMap, split: str) -> Values:
        """Mean loss (nats per label) of every row of each group, float64 [rows].

        Raises:
            BadLogits: NaN or infinite logits.
        """
        key = self._key(patterns, split)
        if key in self._seen:
            return self._seen[key]
        stored = self.store.get(key) if self.store is not None else None
        if stored is not None:
            self.reused += 1
            self.reused_seconds += stored[1]
            self._seen[key] = stored[0]
            return stored[0]
        started = time.perf_counter()
        values, share = self._measure(patterns, split)
        seconds = time.perf_counter() - started
        if self.store is not None:
            self.store.put(key, patterns, split, values, seconds)
        self.passes += share
        self.seconds += seconds
        self._seen[key] = values
        self.on_pass(seconds)
        return values

    def _key(self, patterns: PatternMap, split: str) -> str:
        return probe_key(patterns, self.splits[split].sha256, self.weights)

    @torch.no_grad()
    def _measure(self, patterns: PatternMap, split: str) -> tuple[Values, float]:
        """(losses, share of a whole pass that they took)."""
        layers = len(self.model.blocks)
        first = self._first_difference(patterns)
        if split != "search" or self._base is None or first < self._layer or first == layers:
            batches, start = self.batches(split), 0
        else:
            batches, start = self._advanced(first), first
        found: dict[str, list[np.ndarray]] = {}
        for held in batches:
            x = self.model.embed(held.tokens) if held.x is None else held.x
            x = self.through(x, patterns, start, layers)
            found.setdefault(held.group, []).append(self._row_losses(x, held, patterns))
        return {name: np.concatenate(parts) for name, parts in found.items()}, (layers - start) / layers

    def _first_difference(self, patterns: PatternMap) -> int:
        base = self._base or patterns
        return next((i for i, (a, b) in enumerate(zip(patterns, base)) if a != b), len(self.model.blocks))

    def _advanced(self, layer: int) -> list[_Batch]:
        """The search split's batches with the base's input of a layer at or behind the one held so far."""
        assert self._base is not None
        if not self._held:
            self._held = self.batches("search")
            for held in self._held:
                held.x = self.model.embed(held.tokens)
        for held in self._held:
            assert held.x is not None
            held.x = self.through(held.x, self._base, self._layer, layer)
        self._layer = layer
        return self._held

    def through(self, x: Tensor, patterns: PatternMap, first: int, last: int) -> Tensor:
        """What the layers first .. last - 1 make of their input [B, T, d_model]."""
        cosines, sines = self.model.rope()
        rope = cosines[: x.shape[1]], sines[: x.shape[1]]
        for block, row in zip(self.model.blocks[first:last], patterns.rows[first:last]):
            x = block(x, row, rope)
        return x

    def batches(self, split: str) -> list[_Batch]:
        """The rows of a split in batches, on the model's device."""
        device = self.model.embed.weight.device
        found = []
        for name, rows in self.splits[split].groups.items():
            for at in range(0, len(rows.inputs), self.batch):
                pair = (torch.from_numpy(ids[at : at + self.batch]).to(device) for ids in (rows.inputs, rows.labels))
                found.append(_Batch(name, *pair))
        return found

    def _row_losses(self, x: Tensor, held: _Batch, patterns: PatternMap) -> np.ndarray:
        """Mean loss over the labels of each row. Logits are made at labelled positions alone."""
        asked = held.labels != IGNORE
        states, labels = x[asked], held.labels[asked]
        step = max(1, _MOST_LOGITS // self.model.config.vocab_size)
        losses = torch.cat([
            F.cross_entropy(self.model.logits_of(states[at : at + step]).float(), labels[at : at + step],
                            reduction="none")
            for at in range(0, len(labels), step)
        ]).double()  # fmt: skip
        if not bool(torch.isfinite(losses).all()):
            raise BadLogits(
                f"the model's logits are NaN or infinite, {where_it_began(self.model, held.tokens, patterns)}; "
                "the training run diverged: search another model"
            )
        row = asked.nonzero()[:, 0]
        sums = torch.zeros(len(asked), dtype=torch.float64, device=x.device).index_add_(0, row, losses)
        return (sums / asked.sum(dim=1).clamp(min=1)).cpu().numpy()
