"""What gets a pattern of its own in a search: units, candidates, and choices of one candidate for each unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap

# One candidate's index for each unit.
Choice = tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """Heads of keys of one layer that have one pattern together: one head, or all of the layer."""

    layer: int
    heads: tuple[int, ...]

    def name(self, kv_heads: int) -> str:
        """`layer 3`, or `layer 3 head 1` where it is not the whole layer."""
        if len(self.heads) == kv_heads:
            return f"layer {self.layer}"
        return f"layer {self.layer} head {','.join(map(str, self.heads))}"


@dataclass(frozen=True)
class Space:
    """All that a search may choose: units that together are every head of keys of the model, and candidates.

    Attributes:
        layers, kv_heads, group: of the model; `group` query heads share a head of keys.
    """

    layers: int
    kv_heads: int
    group: int
    units: tuple[Unit, ...]
    candidates: tuple[Pattern, ...]

    @classmethod
    def of(cls, config: ModelConfig, candidates: Sequence[Pattern], split: Sequence[int] = ()) -> Space:
        """Units of a model: each layer, but each head of keys in the layers of `split`."""
        every = tuple(range(config.key_heads))
        units: list[Unit] = []
        for layer in range(config.layers):
            units += [Unit(layer, (head,)) for head in every] if layer in split else [Unit(layer, every)]
        return cls(config.layers, config.key_heads, config.group, tuple(units), tuple(candidates))

    def map(self, choice: Choice) -> PatternMap:
        """The PatternMap [layers][query heads] of a choice."""
        rows = [[self.candidates[0]] * self.kv_heads for _ in range(self.layers)]  # every place is set below
        for unit, index in zip(self.units, choice, strict=True):
            for head in unit.heads:
                rows[unit.layer][head] = self.candidates[index]
        return PatternMap(tuple(tuple(p for p in row for _ in range(self.group)) for row in rows))

    def uniform(self, index: int) -> Choice:
        return (index,) * len(self.units)

    def changed(self, choice: Choice, unit: int, index: int) -> Choice:
        """The choice with one unit's candidate replaced."""
        return (*choice[:unit], index, *choice[unit + 1 :])

    def substituted(self, base: PatternMap, unit: Unit, index: int) -> PatternMap:
        """A map with the candidate of that index in one unit."""
        heads = {head * self.group + i for head in unit.heads for i in range(self.group)}
        row = tuple(self.candidates[index] if head in heads else p for head, p in enumerate(base[unit.layer]))
        return PatternMap((*base.rows[: unit.layer], row, *base.rows[unit.layer + 1 :]))

    def taken_over(self, choice: Choice, from_space: Space) -> Choice:
        """A choice of a coarser space as one of this space."""
        at = {(u.layer, head): index for u, index in zip(from_space.units, choice) for head in u.heads}
        return tuple(at[unit.layer, unit.heads[0]] for unit in self.units)


def candidates_of(labels: Sequence[str], heads_differ: bool) -> tuple[Pattern, ...]:
    """The patterns of labels, each once.

    Args:
        heads_differ: whether heads of one layer may get different ones.

    Raises:
        ValueError: no label, one of a pattern that has no loss, fewer than two, or block lengths that one layer
            cannot mix.
    """
    found: dict[Pattern, str] = {}
    for label in labels:
        try:
            pattern = Pattern.from_label(label).canonical
        except ValueError as error:
            raise ValueError(f"candidates: {error}") from None
        if pattern.needs_prompt:
            raise ValueError(
                f"candidates: {label}: what it shows depends on where a prompt ends, so whole texts have no loss under "
                "it; leave it out, or use a pattern of phase both, such as top8x64"
            )
        found.setdefault(pattern, label)
    if len(found) < 2:
        raise ValueError(f"candidates: got {', '.join(labels) or 'none'}; give at least two different patterns")
    blocks = sorted({p.block for p in found if p.top is not None})
    if heads_differ and len(blocks) > 1:
        raise ValueError(
            f"candidates: select blocks of {' and '.join(map(str, blocks))} tokens; heads of one layer need one block "
            "length, so give one, or use over=layers"
        )
    return tuple(found)
