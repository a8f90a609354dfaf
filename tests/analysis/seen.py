"""What a reader sees of a table or a figure, as lines of text that a test compares with a file in `seen/`.

Of a table: its Markdown and the values of its CSV file. Of a figure: every panel with its titles, scales, limits and
ticks, every mark with its data, colour, line and marker, every text, and the legend. Sizes of types and lines are left
out. After a change that is meant, write the files anew and read what is different:
`SEEN=write pytest tests/analysis -k seen`.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, to_markdown

FOLDER = Path(__file__).with_name("seen")
_IDS = ("cell", "pretrain", "adapt")
_LEADER = "leader"  # gid of the lines to labels, whose places follow from the sizes of texts


def check(name: str, *parts) -> None:
    """Compare tables, pictures, figures, frames and texts with what `seen/<name>.txt` says of them."""
    now = "\n\n".join(map(text_of, parts)) + "\n"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("SEEN") == "write":
        path.write_text(now, encoding="utf-8")
    assert now.splitlines() == path.read_text(encoding="utf-8").splitlines()


def text_of(part) -> str:
    if isinstance(part, Picture):
        return f"picture {part.name}\n{text_of(part.figure)}"
    if isinstance(part, Figure):
        return "\n".join(_figure(part))
    if isinstance(part, Table):
        head = f"table {part.name}, {part.names} names{', grouped' if part.grouped else ''}"
        return f"{head}\n{to_markdown(part).strip()}" + ("" if part.data is None else f"\n{text_of(part.data)}")
    if isinstance(part, pd.DataFrame):
        columns = [(name, [_plain(cell) for cell in part[name]]) for name in part if name not in _IDS]
        return "\n".join([f"{len(part)} rows", *(f"  {name}: {_collapsed(cells)}" for name, cells in columns)])
    return str(part)


def _plain(value) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "·"
    return _number(value, 6) if isinstance(value, float) else str(value) or "·"


def _collapsed(cells: list[str]) -> str:
    """The cells of a column; equal ones that follow each other as one, with their number."""
    runs = [(cell, len(list(same))) for cell, same in groupby(cells)]
    return " | ".join(cell if count == 1 else f"{cell} ×{count}" for cell, count in runs)


def _number(value, digits: int = 4) -> str:
    # What rounding leaves of a zero is another number on another machine.
    return f"{0.0 if abs(value) < 1e-12 else float(value):.{digits}g}"


def _points(xy: Iterable) -> str:
    return " ".join(",".join(map(_number, point)) for point in xy)


def _figure(figure: Figure) -> Iterable[str]:
    # The legend is as high as its font makes it.
    legends = sum(legend.get_window_extent().height for legend in figure.legends) / figure.dpi
    yield f"figure of {figure.get_figwidth():g} × {figure.get_figheight() - legends:.2f} in and its legend"
    for text in (figure.get_suptitle(), figure.get_supxlabel(), figure.get_supylabel()):
        if text:
            yield f"over all: {text!r}"
    for axes in figure.axes:
        yield from _axes(axes)
    for legend in figure.legends:
        yield "legend:"
        yield from (f"  {' '.join(text.get_text().split())!r}: {_look(handle)}" for text, handle in _entries(legend))


def _entries(legend) -> Iterable[tuple]:
    return zip(legend.get_texts(), legend.legend_handles, strict=True)


def _axes(axes: Axes) -> Iterable[str]:
    if not axes.get_visible() or not axes.axison:
        yield "panel: empty" if not axes.has_data() else "panel: hidden, with data"
        return
    bar = axes.get_label() == "<colorbar>"
    yield f"{'colour bar' if bar else 'panel'}: {axes.get_title()!r}"
    yield f"  x {axes.get_xlabel()!r} {_scale(axes, 'x')}"
    yield f"  y {axes.get_ylabel()!r} {_scale(axes, 'y')}"
    if bar:
        return
    for line in axes.lines:
        caps = line.get_marker() == "_" and line.get_linestyle() == "None"  # of error bars, whose data say the same
        if caps or line.get_gid() == _LEADER:
            continue
        across = "" if line.get_transform() == axes.transData else "across "
        yield f"  {across}line {_look(line)}: {_points(line.get_xydata())}"
    for marks in axes.collections:
        if isinstance(marks, LineCollection):
            segments = " | ".join(_points(segment) for segment in marks.get_segments())
            yield f"  bars {to_hex(marks.get_colors()[0])}: {segments}"
        elif isinstance(marks, PathCollection):
            yield f"  dots {to_hex(marks.get_facecolors()[0])}: {_points(marks.get_offsets())}"
    for image in axes.images:
        shades, norm = image.get_array(), image.norm
        scale = f"{type(norm).__name__} {_number(norm.vmin)} to {_number(norm.vmax)}"
        yield f"  image {image.get_cmap().name}, {scale}, extent {_points([image.get_extent()])}"
        yield from (f"    {row}" for row in _shades(np.ma.filled(shades.astype(float), math.nan)))
    if (legend := axes.get_legend()) is not None:
        yield from (f"  in its legend {text.get_text()!r}: {_look(handle)}" for text, handle in _entries(legend))
    for colour in dict.fromkeys(text.get_color() for text in axes.texts):
        texts = [text for text in axes.texts if text.get_color() == colour]
        yield f"  texts {colour}: {' | '.join(f'{_place(text)} {text.get_text()!r}' for text in texts)}"


def _place(text) -> str:
    return _points([text.xy if isinstance(text, Annotation) else text.get_position()])


def _shades(image: np.ndarray) -> Iterable[str]:
    if image.size > 400:  # a mask
        dark = image != 0
        return [f"{dark.sum()} of {dark.size} dark, checksum {zlib.crc32(np.packbits(dark).tobytes()):08x}"]
    return [" ".join(map(_number, row)) for row in image]


def _scale(axes: Axes, which: str) -> str:
    axis = getattr(axes, f"{which}axis")
    scale = axis.get_scale()
    base = f" {axis.get_transform().base:g}" if scale == "log" else ""
    told = f"{scale}{base} {_points([getattr(axes, f'get_{which}lim')()])}"
    for kind, own in (("ticks", axis.major), ("between", axis.minor)):
        if isinstance(own.locator, (FixedLocator, LogLocator)):
            places = [place for place in own.locator() if _is_within(place, getattr(axes, f"get_{which}lim")())]
            if places and not isinstance(own.formatter, NullFormatter):
                named = isinstance(own.locator, FixedLocator) or isinstance(own.formatter, FuncFormatter)
                names = own.formatter.format_ticks(places) if named else [""] * len(places)
                told += f", {kind} " + " ".join(f"{_number(p)}={n}" for p, n in zip(places, names))
    if not axis.get_tick_params().get("labelbottom" if which == "x" else "labelleft", True):
        told += ", no labels"
    return told.replace("\n", "/")


def _is_within(place: float, limits: tuple) -> bool:
    return min(limits) * 0.999 <= place <= max(limits) * 1.001 or min(limits) <= place <= max(limits)


def _look(mark) -> str:
    if isinstance(mark, LineCollection):  # of error bars
        return f"bars {to_hex(mark.get_colors()[0])}"
    if not isinstance(mark, Line2D):
        return f"patch {to_hex(mark.get_facecolor())}"
    parts = [to_hex(mark.get_color())]
    style = mark.get_linestyle()
    dashes = mark._unscaled_dash_pattern[1]  # matplotlib calls every line of dashes "--"
    parts.append("none" if style in ("None", "none") else style if dashes is None else str(list(map(float, dashes))))
    if mark.get_drawstyle() != "default":
        parts.append(mark.get_drawstyle())
    if mark.get_alpha() is not None:
        parts.append("pale")
    if mark.get_marker() not in ("None", "none", "", None):
        face = mark.get_markerfacecolor()
        parts.append(f"{mark.get_marker()}/{face if face == 'none' else to_hex(face)}")
    return " ".join(parts)
