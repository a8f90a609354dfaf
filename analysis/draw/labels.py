"""Texts beside the points of a figure, where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import Bbox

LEADER = "leader"  # gid of the thin lines from points to their labels
# Half a marker's size in points, where it is not known.
MARK_RADIUS = 3.0


def place_labels(points: Mapping[Axes, Sequence[tuple[float, float, str]]], colour: str = "0.25") -> list[str]:
    """Write each point's text near it: over no line, marker or other text, and inside its axes.

    The nearest free place is taken; one that is not beside the point gets a thin line to it. Call it last, when limits
    and layout are final.

    Args:
        points: for each of a figure's axes, (x, y, text) in the axes' units; a point without a text only takes room, as
            does what is drawn there: lines with their steps, markers, collections.
        colour: of the texts.

    Returns:
        The texts that found no place; they are not written.
    """
    for figure in {cast(Figure, axes.figure) for axes in points}:  # no subfigures here
        # With a canvas that draws, texts are measured by its renderer; without one each text sets up a renderer anew.
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
    return [text for axes, own in points.items() for text in _place(axes, own, colour)]


def _place(axes: Axes, points: Sequence[tuple[float, float, str]], colour: str) -> list[str]:
    """Label the points of one of the axes, once the figure has its layout; returns the texts that found no place."""
    point = axes.figure.dpi / 72  # in pixels
    dots = axes.transData.transform([(x, y) for x, y, _ in points]) if points else []
    lines, boxes = _obstacles(axes, point)
    taken = np.array([*boxes, *(_square(dot, MARK_RADIUS * point) for dot in dots)]).reshape(-1, 4)
    inside = np.asarray(axes.get_window_extent().extents)
    left_out = []
    for (x, y, text), dot in zip(points, dots):
        if not text:
            continue
        label = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=6, color=colour,
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
        )  # fmt: skip
        size = label.get_window_extent()
        for far, centre in _places(dot, size.width, size.height, point):
            half = np.array([size.width, size.height]) / 2
            box = np.array([*(centre - half), *(centre + half)])
            if not _is_within(box, inside):
                continue
            room = box + point * np.array([-1, -1, 1, 1])
            if _overlap(room, taken).any() or _crosses(lines, room):
                continue
            leader = Path([dot, _nearest(box, dot)])
            others = taken[~_overlap(np.tile(dot, 2), taken)] if far else ()
            if not any(leader.intersects_bbox(Bbox.from_extents(other), filled=False) for other in others):
                break
        else:
            label.remove()
            left_out.append(text)
            continue
        label.set_position((centre - dot) / point)
        label.set_in_layout(False)
        taken = np.vstack([taken, box])
        if far:
            lines.append(leader)
            ends = axes.transData.inverted().transform(leader.vertices)
            # It lies above the grid and below what is drawn. As a line of the axes it would change their limits.
            axes.add_artist(Line2D(*ends.T, color=colour, linewidth=0.4, marker="", zorder=1.5, gid=LEADER))
    return left_out


def _obstacles(axes: Axes, point: float) -> tuple[list[Path], list[np.ndarray]]:
    """What is drawn in axes, in pixels: lines as paths, and a box for each marker."""
    lines, boxes = [], []
    for line in axes.lines:
        if line.get_transform() != axes.transData:
            continue  # a span over the width or height of the axes
        xs, ys = line.get_xdata(orig=False), line.get_ydata(orig=False)
        marks = axes.transData.transform(np.column_stack([xs, ys]))
        marks = marks[np.isfinite(marks).all(axis=1)]
        if line.get_marker() not in (None, "", " ", "None", "none"):
            boxes += [_square(mark, line.get_markersize() / 2 * point) for mark in marks]
        if line.get_linestyle() not in ("", " ", "None", "none") and len(marks) > 1:
            # Line2D turns its points into steps only when it is drawn.
            steps = np.column_stack(STEP_LOOKUP_MAP[line.get_drawstyle()](*marks.T))
            lines.append(Path(steps))
    for collection in axes.collections:
        marks = axes.transData.transform(collection.get_offsets())
        boxes += [_square(mark, MARK_RADIUS * point) for mark in marks]
    return lines, boxes


def _places(dot: np.ndarray, width: float, height: float, point: float) -> Iterator[tuple[bool, np.ndarray]]:
    """(whether it is not beside the point, centre of a text of that size) for the places near a dot, best first."""
    for far, distance in enumerate((4, 5.5, 9, 13, 18, 24, 31, 39)):
        for angle in (45, 135, 90, -45, -135, -90, 0, 180, 22, 158, -22, -158, 67, 113, -67, -113):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            shift = (across * (distance * point + width / 2), up * (distance * point + height / 2))
            yield far > 1, dot + np.array(shift)


# Boxes are arrays (left, bottom, right, top) in pixels.


def _square(dot: np.ndarray, radius: float) -> np.ndarray:
    """The square box with that dot in its middle."""
    return np.array([dot[0] - radius, dot[1] - radius, dot[0] + radius, dot[1] + radius])


def _is_within(box: np.ndarray, outer: np.ndarray) -> bool:
    return bool((box[:2] >= outer[:2]).all() and (box[2:] <= outer[2:]).all())


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of the other boxes, whether the box overlaps it or touches it."""
    return np.asarray(((box[:2] <= others[:, 2:]) & (box[2:] >= others[:, :2])).all(axis=1))


def _crosses(lines: list[Path], box: np.ndarray) -> bool:
    bounds = Bbox.from_extents(*box)
    return any(line.intersects_bbox(bounds, filled=False) for line in lines)


def _nearest(box: np.ndarray, dot: np.ndarray) -> np.ndarray:
    """The point of a box that is nearest to a dot outside it."""
    return np.clip(dot, box[:2], box[2:])
