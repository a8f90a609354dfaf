"""An x axis for patterns: dilation on a log2 scale, then streaming at "none", then a place for each other pattern.

The others are hybrids and patterns that select by query, whose dilation says little of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

# Inches on an axis of this width that each kind of place takes, so that tick labels of 7 pt never touch.
_AXIS_IN = 2.55
_GAP_IN, _NONE_IN, _HYBRID_IN, _DIGIT_IN, _SPACE_IN, _MARGIN_IN = 0.3, 0.28, 0.2, 0.07, 0.08, 0.12
# With more others than this, all of them share one place, "other" ("hybrid" if they all are).
_MOST_OTHERS = 6
_ON_AXIS = ("dense", "dilated", "dilated_local", "streaming")


class DilationAxis:
    """The x axis of a figure: it says where each pattern stands, and draws scale, ticks and limits.

    Args:
        points: rows with `kind`, `dilation` and `pattern`.

    Attributes:
        others: {pattern label: short name on the axis, `H1`, `H2`, ... of hybrids, `S1`, ... of selecting patterns} in
            the rows' order; empty if there are so many that they share a place.
    """

    def __init__(self, points: pd.DataFrame):
        apart = ~points["kind"].isin(_ON_AXIS)
        dilations = points.loc[~apart, "dilation"].dropna().astype(int)
        self._has_dilations = len(dilations) > 0
        self._low = math.floor(math.log2(dilations.min())) if self._has_dilations else 0
        self._high = math.ceil(math.log2(dilations.max())) if self._has_dilations else 0
        streams = bool(points["kind"].eq("streaming").any())
        kinds = dict(zip(points.loc[apart, "pattern"], points.loc[apart, "kind"]))
        few = len(kinds) <= _MOST_OTHERS
        self.others: dict[str, str] = {}
        for letter, hybrid in (("H", True), ("S", False)):
            own = [label for label, kind in kinds.items() if (kind == "hybrid") == hybrid]
            self.others |= {label: f"{letter}{number}" for number, label in enumerate(own, start=1)} if few else {}
        shared = "hybrid" if set(kinds.values()) == {"hybrid"} else "other"
        names = (["none"] if streams else []) + (list(self.others.values()) if few else [shared])

        # The places right of the dilations get their inches first; the doublings share what is left.
        steps = [_GAP_IN] + [_NONE_IN if left == "none" else _HYBRID_IN for left in names[:-1]] if names else []
        self._doubling_in = (_AXIS_IN - sum(steps) - 2 * _MARGIN_IN) / max(1, self._high - self._low)
        place, self._places = float(self._high), {}
        for name, step in zip(names, steps):
            place += step / self._doubling_in
            self._places[name] = place
        self._last = place
        self._other_names = {label: self.others.get(label, shared) for label in kinds}

    def position(self, kind: str, dilation: int | None, pattern: str) -> float:
        """The x value of a pattern, on the axis's log scale."""
        if kind not in _ON_AXIS:
            return 2.0 ** self._places[self._other_names[pattern]]
        if kind == "streaming":
            return 2.0 ** self._places["none"]
        assert dilation is not None, pattern
        return float(dilation)

    def positions(self, points: pd.DataFrame) -> list[float]:
        """The x value of each row's pattern."""
        return [self.position(kind, d, p) for kind, d, p in zip(points["kind"], points["dilation"], points["pattern"])]

    def draw(self, panels: Sequence[Axes]) -> None:
        """Scale, ticks and limits of panels that share their x axis, and a rule between dilations and the rest.

        Call it after plotting.
        """
        every = math.ceil((_DIGIT_IN * len(str(2**self._high)) + _SPACE_IN) / self._doubling_in)
        powers = range(self._low, self._high + 1, every) if self._has_dilations else ()
        ticks = [(float(2**power), str(2**power)) for power in powers]
        ticks += [(2.0**place, name) for name, place in self._places.items()]
        axes = panels[-1]
        axes.set_xscale("log", base=2)
        axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
        axes.minorticks_off()
        margin = _MARGIN_IN / self._doubling_in
        axes.set_xlim(2.0 ** (self._low - margin), 2.0 ** (self._last + margin))
        if self._has_dilations and self._places:
            for axes in panels:
                rule = self._high + _GAP_IN / 2 / self._doubling_in
                axes.axvline(2.0**rule, color="0.8", linewidth=0.6, zorder=0)

    @property
    def title(self) -> str:
        """Label of the axis."""
        return "Dilation $D$  (none: streaming)" if "none" in self._places else "Dilation $D$"
