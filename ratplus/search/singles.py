"""Single substitutions: what each unit's change to each candidate does within a base map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ratplus.pattern import PatternMap
from ratplus.search.damage import Values, difference
from ratplus.search.probe import Probes
from ratplus.search.units import Space


@dataclass(frozen=True)
class Singles:
    """Losses on the search split of a base map, and of it with one unit changed.

    Attributes:
        changed: (unit, candidate) -> losses; a unit that was not measured has none.
    """

    space: Space
    base: Values
    changed: dict[tuple[int, int], Values]

    @property
    def units(self) -> list[int]:
        """The units that were measured."""
        return sorted({unit for unit, _ in self.changed})

    def raw(self, weight: float, part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """Damage relative to the base, [units, candidates]; NaN where nothing was measured."""
        table = np.full((len(self.space.units), len(self.space.candidates)), np.nan)
        for place, values in self.changed.items():
            table[place] = difference(values, self.base, weight, part).mean
        return table

    def stderr(self, weight: float) -> np.ndarray:
        """Standard errors of `raw`."""
        table = np.full((len(self.space.units), len(self.space.candidates)), np.nan)
        for place, values in self.changed.items():
            table[place] = difference(values, self.base, weight).stderr
        return table


def measure(probes: Probes, space: Space, base: PatternMap, units: Iterable[int] | None = None) -> Singles:
    """Measure every candidate in each of some units (None: all), in the order of layers."""
    probes.set_base(base)
    origin = probes.losses(base, "search")
    wanted = range(len(space.units)) if units is None else units
    changed = {}
    for unit in sorted(wanted, key=lambda u: (space.units[u].layer, u)):
        for index in range(len(space.candidates)):
            changed[unit, index] = probes.losses(space.substituted(base, space.units[unit], index), "search")
    return Singles(space, origin, changed)
