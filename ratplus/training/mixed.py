"""Mixed adaptation: in each step every layer, or every head of keys, has a pattern drawn from a few candidates.

One model then serves many maps, so that a search among them (`ratplus search`) is biased to none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap

# Of draws, beside those of ratplus.data.batches (1 to 3), ratplus.data.sft (4) and ratplus.search.splits (5 to 7).
_STREAM = 8


@dataclass(frozen=True)
class MixedPatterns:
    """The map of each step: a pure function of seed and step, so that resuming and other ranks draw the same.

    Attributes:
        over: "layers" or "heads" (of keys).
    """

    candidates: tuple[Pattern, ...]
    over: str
    layers: int
    kv_heads: int
    group: int
    seed: int

    @classmethod
    def of(cls, labels: Sequence[str], over: str, config: ModelConfig, seed: int) -> MixedPatterns:
        """Of a recipe's candidates; `RecipeSection.check` has seen to it that they are labels."""
        candidates = tuple(Pattern.from_label(label) for label in labels)
        return cls(candidates, over, config.layers, config.key_heads, config.group, seed)

    def at(self, step: int) -> PatternMap:
        """The map of a step, drawn from Philox keyed by (seed, step)."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, _STREAM]))
        heads = self.kv_heads if self.over == "heads" else 1
        drawn = draw.integers(0, len(self.candidates), (self.layers, heads))
        repeats = self.kv_heads * self.group // heads
        return PatternMap(tuple(tuple(self.candidates[int(i)] for i in row for _ in range(repeats)) for row in drawn))
