"""Labels of figures stand on empty ground: measured on the picture that is drawn without them."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from ratplus.analysis import pareto
from ratplus.analysis.draw import style
from ratplus.analysis.draw.labels import LEADER, place_labels
from ratplus.analysis.frame.load import load_sweep


def check(figure: Figure) -> list[str]:
    """Texts of the labels, once no pixel under any of them is drawn on and no two overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = [(a, text) for a in figure.axes for text in a.texts if isinstance(text, Annotation)]
    boxes = [label.get_window_extent(canvas.get_renderer()) for _, label in labels]
    for (axes, label), box in zip(labels, boxes):
        inside = axes.get_window_extent()
        corners = box.corners()
        assert (corners >= inside.min).all(), label
        assert (corners <= inside.max).all(), label
        for (_, other), another in zip(labels, boxes):
            assert other is label or not box.overlaps(another), (label, other)
        label.set_visible(False)
    for axes in figure.axes:
        axes.grid(False)
        for leader in axes.findobj(lambda artist: artist.get_gid() == LEADER):
            # A leader may end at its own label, so it is not part of this picture.
            leader.set_visible(False)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[::-1]  # rows upwards, as boxes count
    for (_, label), box in zip(labels, boxes):
        under = picture[int(np.ceil(box.y0)) : int(box.y1), int(np.ceil(box.x0)) : int(box.x1), :3]
        assert under.size
        assert (under == 255).all(), f"{label.get_text()} stands on something drawn"
    return [label.get_text() for _, label in labels]


@pytest.mark.parametrize("name", ["demo", "everything"])
def test_labels_of_pareto_touch_nothing(name, request):
    frame = load_sweep(request.getfixturevalue(name))
    figure = pareto.figure(frame)
    texts = check(figure)
    assert {"D1", "D64"} <= set(texts)
    if name == "demo":
        rows = pareto.table(frame)
        # Loss and recall against both costs: no label of the loss's frontiers is lacking.
        assert len(texts) >= rows["frontier_kv"].sum() + rows["frontier_flops"].sum()


def crowded(points) -> tuple[Figure, list[str]]:
    with style.context():
        figure = Figure(figsize=(2.6, 1.6))
        axes = figure.subplots()
        xs, ys = zip(*points)
        axes.plot(xs, ys, drawstyle="steps-post")
        axes.plot(xs, ys, "o")
        return figure, place_labels({axes: [(x, y, f"label {i}") for i, (x, y) in enumerate(points)]})


def test_crowded_points_have_leaders():
    figure, left_out = crowded([(x, x + 0.1 * (x % 2)) for x in (0, 1, 1.05, 1.1, 1.15, 2, 3)])
    assert left_out == []
    assert len(check(figure)) == 7
    assert figure.axes[0].findobj(lambda artist: artist.get_gid() == LEADER)


def test_what_has_no_room_is_returned():
    draw = np.random.default_rng(0)
    figure, left_out = crowded(sorted(map(tuple, draw.uniform(size=(50, 2)))))
    written = check(figure)
    assert left_out
    assert sorted([*written, *left_out]) == sorted(f"label {i}" for i in range(50))
