"""An x axis for patterns: dilation on a log2 scale, then streaming at "none", then one place for each hybrid."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

# More tick labels than this touch each other at column width.
_MOST_DILATION_TICKS = 8


class DilationAxis:
    """Where each pattern stands, and how the axis is drawn.

    Args:
        points: rows with `kind`, `dilation`, `pattern` and `pattern_name`.

    Attributes:
        hybrids: {pattern label: short name on the axis, `H1`, `H2`, ...} in the rows' order.
    """

    def __init__(self, points: pd.DataFrame):
        dilations = points["dilation"].dropna().astype(int)
        self._low = max(0, math.floor(math.log2(dilations.min()))) if len(dilations) else 0
        self._high = math.ceil(math.log2(dilations.max())) if len(dilations) else 0
        self._streams = bool(points["kind"].eq("streaming").any())
        labels = list(dict.fromkeys(points.loc[points["kind"].eq("hybrid"), "pattern"]))
        self.hybrids = {label: f"H{number}" for number, label in enumerate(labels, start=1)}
        # Places right of the dilations, in units of one doubling; half a unit more sets them apart.
        first = self._high + 1.3 if len(dilations) else 0.0
        self._stream_at = first
        self._hybrids_at = {label: first + self._streams + i for i, label in enumerate(labels)}
        self._last = max([self._high, *([first] if self._streams else []), *self._hybrids_at.values()])
        self._has_dilations = len(dilations) > 0

    def position(self, kind: str, dilation: int | None, pattern: str) -> float:
        """x of a pattern, on the axis's log scale."""
        if kind == "hybrid":
            return 2.0 ** self._hybrids_at[pattern]
        return 2.0**self._stream_at if kind == "streaming" else float(dilation)

    def positions(self, points: pd.DataFrame) -> list[float]:
        """x of each row."""
        return [self.position(kind, d, p) for kind, d, p in zip(points["kind"], points["dilation"], points["pattern"])]

    def draw(self, axes: Axes) -> None:
        """Scale, ticks, limits and the gap between dilations and the rest; call it after plotting."""
        every = math.ceil((self._high - self._low + 1) / _MOST_DILATION_TICKS)
        powers = range(self._low, self._high + 1, every) if self._has_dilations else ()
        ticks = [(float(2**power), str(2**power)) for power in powers]
        if self._streams:
            ticks.append((2.0**self._stream_at, "none"))
        ticks += [(2.0 ** self._hybrids_at[label], short) for label, short in self.hybrids.items()]
        axes.set_xscale("log", base=2)
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        axes.minorticks_off()
        axes.set_xlim(2.0 ** (self._low - 0.45), 2.0 ** (self._last + 0.45))
        if self._has_dilations and self._last > self._high:
            axes.axvline(2.0 ** (self._high + 0.65), color="0.8", linewidth=0.6, zorder=0)

    @property
    def title(self) -> str:
        return "Dilation $D$  (none: streaming)" if self._streams else "Dilation $D$"
