"""Texts beside the points of a figure, where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import Bbox

LEADER = "leader"  # gid of the thin lines from points to their labels


def place_labels(axes: Axes, points: list[tuple[float, float, str]], colour: str = "0.25") -> list[str]:
    """Write each point's text near it: over no line, marker or other text, and inside the axes.

    The nearest free place is taken; one that is not beside the point gets a thin line to it. Call it last, when limits
    and layout are final.

    Args:
        axes: what is drawn there (lines with their steps, markers, collections) takes its room.
        points: (x, y, text) in the axes' units; without a text it only takes room.
        colour: of the texts.

    Returns:
        The texts that found no place; they are not written.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    renderer, point = figure._get_renderer(), figure.dpi / 72
    dots = axes.transData.transform([(x, y) for x, y, _ in points]) if points else []
    lines, taken = _obstacles(axes, point)
    taken += [_around(dot, 3.0 * point) for dot in dots]
    inside = axes.get_window_extent(renderer)
    left_out = []
    for (x, y, text), dot in zip(points, dots):
        if not text:
            continue
        label = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=6, color=colour,
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
        )  # fmt: skip
        size = label.get_window_extent(renderer)
        for far, centre in _places(dot, size.width, size.height, point):
            box = Bbox.from_bounds(centre[0] - size.width / 2, centre[1] - size.height / 2, size.width, size.height)
            leader = Path([dot, _nearest(box, dot)]) if far else None
            room = box.padded(point)
            if (
                inside.containsx(box.x0) and inside.containsx(box.x1)
                and inside.containsy(box.y0) and inside.containsy(box.y1)
                and not any(room.overlaps(other) for other in taken)
                and not any(line.intersects_bbox(room, filled=False) for line in lines)
                and not (far and any(leader.intersects_bbox(other, filled=False) for other in taken
                                     if not other.contains(*dot)))
            ):  # fmt: skip
                break
        else:
            label.remove()
            left_out.append(text)
            continue
        label.set_position((centre - dot) / point)
        label.set_in_layout(False)
        taken.append(box)
        if far:
            lines.append(leader)
            ends = axes.transData.inverted().transform(leader.vertices)
            # Above the grid, below what is drawn; a line of its own would change the limits.
            axes.add_artist(Line2D(*ends.T, color=colour, linewidth=0.4, marker="", zorder=1.5, gid=LEADER))
    return left_out


def _obstacles(axes: Axes, point: float) -> tuple[list[Path], list[Bbox]]:
    """In pixels: the lines drawn in axes as paths, and boxes around their markers."""
    lines, boxes = [], []
    for line in axes.lines:
        if line.get_transform() != axes.transData:
            continue  # spans of the axes
        xs, ys = line.get_xdata(orig=False), line.get_ydata(orig=False)
        marks = axes.transData.transform(np.column_stack([xs, ys]))
        marks = marks[np.isfinite(marks).all(axis=1)]
        if line.get_marker() not in (None, "", " ", "None", "none"):
            boxes += [_around(mark, line.get_markersize() / 2 * point) for mark in marks]
        if line.get_linestyle() not in ("", " ", "None", "none") and len(marks) > 1:
            # Line2D turns its points into steps only when it is drawn.
            steps = np.column_stack(STEP_LOOKUP_MAP[line.get_drawstyle()](*marks.T))
            lines.append(Path(steps))
    for collection in axes.collections:
        boxes += [_around(mark, 3.0 * point) for mark in axes.transData.transform(collection.get_offsets())]
    return lines, boxes


def _places(dot: np.ndarray, width: float, height: float, point: float) -> Iterator[tuple[bool, np.ndarray]]:
    """(whether it is not beside the point, centre of a text of that size) for the places around a dot, best first."""
    for far, distance in enumerate((4, 5.5, 9, 13, 18, 24, 31, 39)):
        for angle in (45, 135, 90, -45, -135, -90, 0, 180, 22, 158, -22, -158, 67, 113, -67, -113):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            shift = (across * (distance * point + width / 2), up * (distance * point + height / 2))
            yield far > 1, dot + np.array(shift)


def _around(dot: np.ndarray, radius: float) -> Bbox:
    return Bbox.from_extents(dot[0] - radius, dot[1] - radius, dot[0] + radius, dot[1] + radius)


def _nearest(box: Bbox, dot: np.ndarray) -> np.ndarray:
    """The point of a box that is nearest to a dot outside it."""
    return np.array([min(max(dot[0], box.x0), box.x1), min(max(dot[1], box.y0), box.y1)])
