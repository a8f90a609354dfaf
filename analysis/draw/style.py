"""How figures look, and how they are saved. Everything drawn goes between `with style.context():` and `save`.

A model has a colour, a line style and a marker face; a window has a marker shape. So a figure reads the same for the
colour-blind and in greyscale. The colours are Paul Tol's "high-contrast" set (their luminances differ), then grey.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw.fonts import equip
from ratplus.records.atomic import write_atomically

COLUMN_WIDTH_IN = 3.25
TEXT_WIDTH_IN = 6.75

STYLE_FILE = Path(__file__).with_name("ratplus.mplstyle")

_COLOURS = ("#004488", "#bb5566", "#c99700", "#555555", "#000000")
_LINES = ("-", (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.5, 1)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">", "h")
HYBRID_MARKER = "P"
# The colours of heat maps: from a blue that differs from white to a dark blue, evenly in greyscale too.
SHADES = matplotlib.colors.LinearSegmentedColormap.from_list(
    "shades", matplotlib.colormaps["Blues"]([0.12 + 0.88 * i / 63 for i in range(64)])
)


@dataclass(frozen=True)
class Look:
    """Colour, line style and marker face of one model; `filled` alternates."""

    colour: str
    line: Any  # a name or dashes, as matplotlib takes them
    filled: bool

    @property
    def face(self) -> str:
        return self.colour if self.filled else "white"


def looks(names: list) -> dict:
    """A Look for each name, in order; with more than five names, looks repeat."""
    return {
        name: Look(_COLOURS[i % len(_COLOURS)], _LINES[i % len(_LINES)], filled=i % 2 == 0)
        for i, name in enumerate(names)
    }


def markers(names: list) -> dict:
    """A marker shape for each name, in order; with more than nine names, shapes repeat."""
    return {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(names)}


def sequence(names: list) -> dict:
    """A Look for each of some ordered names, such as dilations: dark to light, so that greyscale shows the order."""
    shades = matplotlib.colormaps["cividis"]([i / max(1, len(names) - 1) * 0.86 for i in range(len(names))])
    colours = [matplotlib.colors.to_hex(shade) for shade in shades]
    return {name: Look(colours[i], _LINES[i % len(_LINES)], filled=i % 2 == 0) for i, name in enumerate(names)}


@contextmanager
def context() -> Generator[None]:
    """Draw with the style file, whatever the user's own matplotlibrc says; the user's settings come back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A line for each sign and each time that it is measured; `fonts.equip` says it once.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(matplotlib.rc_params_from_file(STYLE_FILE, use_default_template=False))
        yield


def legend_below(figure: Figure, handles: Sequence[Artist], most: int = 2, left_out: str = "") -> None:
    """A legend under the panels, in `most` columns if they fit, else fewer; the figure grows by the legend's height.

    Call it last: it measures text. Labels too long for the figure's width are wrapped. `left_out` is a last entry
    without a handle: what the figure had no room for.
    """
    if left_out:
        handles = [*handles, Line2D([], [], linestyle="none", label=left_out)]
    width_in, height_in = figure.get_size_inches()
    for columns in range(most, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        extent = legend.get_window_extent()
        if extent.width <= width_in * figure.dpi or columns == 1:
            break
        legend.remove()
        if columns == 2:
            for handle in handles:
                # A letter takes about 0.06 in at the legend's size, and the handle beside the text 0.5 in.
                handle.set_label(textwrap.fill(str(handle.get_label()), int((width_in - 0.5) / 0.06)))
    figure.set_figheight(height_in + legend.get_window_extent().height / figure.dpi)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.png` (200 dpi) and `<stem>.pdf` (fonts embedded) atomically; returns both paths.

    The same figure gives the same bytes: no creation date is stored.
    """
    stem = Path(stem)
    paths = []
    with context():
        equip(figure)
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=suffix[1:], metadata=metadata)
            paths.append(stem.with_name(stem.name + suffix))
            write_atomically(paths[-1], drawn.getvalue())
    return paths
