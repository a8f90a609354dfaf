"""Looks, legends, fonts, LaTeX of every width and length, and where labels may stand: each rule at its edge."""

from __future__ import annotations

import math
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from seen import check

from ratplus.analysis.draw import fonts, labels, style
from ratplus.analysis.draw.latex import escape, to_latex
from ratplus.analysis.draw.output import Picture, remove_others, write
from ratplus.analysis.draw.tables import Table, number, plain_text, to_csv, to_markdown
from ratplus.analysis.frame.reads import entries, reads_apart

# ---- looks ----


def test_looks_differ_in_colour_line_and_face_and_repeat_after_five():
    found = style.looks(list("abcdefg"))
    assert [look.colour for look in found.values()] == [
        "#004488", "#bb5566", "#c99700", "#555555", "#000000", "#004488", "#bb5566",
    ]  # fmt: skip
    assert [look.filled for look in found.values()] == [True, False, True, False, True, False, True]
    assert (found["a"].face, found["b"].face) == ("#004488", "white")
    assert len({str(found[name].line) for name in "abcde"}) == 5
    assert found["f"].line == found["a"].line == "-"
    assert list(style.markers(list("abcdefghijk")).values()) == ["o", "s", "^", "D", "v", "p", "<", ">", "h", "o", "s"]


def test_an_order_is_dark_to_light_and_one_name_is_dark():
    found = style.sequence(list("abcdef"))
    light = [sum(matplotlib.colors.to_rgb(look.colour)) for look in found.values()]
    assert light == sorted(light)
    assert [look.filled for look in found.values()] == [True, False] * 3
    assert [look.line for look in found.values()] == [look.line for look in style.looks(list("abcdef")).values()]
    whole = matplotlib.colormaps["cividis"]
    assert found["f"].colour == matplotlib.colors.to_hex(whole(0.86))
    assert style.sequence(["a"])["a"].colour == found["a"].colour == matplotlib.colors.to_hex(whole(0.0))


def test_shades_go_from_a_light_blue_to_a_dark_one():
    ends = [matplotlib.colors.to_hex(style.SHADES(value)) for value in (0.0, 1.0)]
    assert ends == [matplotlib.colors.to_hex(matplotlib.colormaps["Blues"](value)) for value in (0.12, 1.0)]


def legend_of(texts, most, left_out="") -> tuple[Figure, list[str], int]:
    """(the figure, its legend's texts, how many columns it has)."""
    with style.context():
        figure = Figure(figsize=(2.0, 1.0))
        figure.subplots()
        style.legend_below(figure, [Line2D([], [], label=text) for text in texts], most=most, left_out=left_out)
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        found = legend.get_texts()
        places = {round(text.get_window_extent().x0) for text in found}
    return figure, [text.get_text() for text in found], len(places)


@pytest.mark.parametrize(
    ("texts", "most", "columns"),
    [(["a", "b", "c"], 3, 3), (["a", "b", "c"], 2, 2), (["a" * 12, "b" * 12, "c" * 12], 3, 1), (["a"], 2, 1)],
)
def test_a_legend_has_as_many_columns_as_fit(texts, most, columns):
    figure, found, across = legend_of(texts, most)
    assert (found, across) == (texts, columns)
    (legend,) = figure.legends
    height = legend.get_window_extent().height / figure.dpi
    assert figure.get_figheight() == pytest.approx(1.0 + height, abs=0.02), "the figure grows by its legend"


def test_long_labels_are_wrapped_and_what_is_left_out_stands_last():
    _, found, across = legend_of(["short", "some words that are far too long for a narrow figure"], 2, "4 of 9")
    assert across == 1
    # (2.0 − 0.5) / 0.06 letters a line.
    assert found == ["short", "some words that are far\ntoo long for a narrow\nfigure", "4 of 9"]


def test_the_users_settings_come_back_and_say_nothing_in_between():
    matplotlib.rcParams["font.size"] = 31
    try:
        with style.context():
            assert matplotlib.rcParams["font.size"] == 8
        assert matplotlib.rcParams["font.size"] == 31
    finally:
        matplotlib.rcdefaults()


# ---- fonts ----


def font(name, characters, kind="normal", weight=400):
    return SimpleNamespace(name=name, style=kind, weight=weight, fname=f"{name}:{characters}")


@pytest.mark.parametrize(
    ("installed", "family", "covered"),
    [
        ([font("B", "x"), font("A", "xy"), font("C", "xyz")], "C", "xyz"),
        ([font("B", "xy"), font("A", "xz")], "A", "xz"),  # as many: the first by name
        ([font("A", "xyz", kind="italic"), font("B", "x")], "B", "x"),
        ([font("A", "xyz"), font("WenQuanYi Zen", "xyz"), font("Noto Sans CJK JP", "xyz")], "Noto Sans CJK JP", "xyz"),
        ([font("A", "xyz", weight=700), font("B", "xyz", weight=400)], "B", "xyz"),
        ([font("A", "xyz", weight=100), font("B", "xyz", weight=600)], "B", "xyz"),
        ([font("A", "xyz", weight="bold"), font("B", "xyz", weight=500)], "A", "xyz"),
        ([font("A", "q")], None, ""), ([], None, ""),
    ],
)  # fmt: skip
def test_the_font_that_has_most_of_what_is_lacking(monkeypatch, installed, family, covered):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", installed)
    monkeypatch.setattr(fonts, "_has", lambda path, character: character in path.partition(":")[2])
    fonts.best_font.cache_clear()
    try:
        assert fonts.best_font("xyz") == (family, frozenset(covered))
    finally:
        fonts.best_font.cache_clear()


def test_a_font_that_is_gone_has_nothing(tmp_path):
    (tmp_path / "a.ttf").write_text("no font")
    assert not fonts._has(str(tmp_path / "a.ttf"), "a")
    assert not fonts._has(str(tmp_path / "gone.ttf"), "a")
    assert fonts._has(font_manager.findfont(fonts.OWN), "a")
    assert not fonts._has(font_manager.findfont(fonts.OWN), "\u4e2d")


def test_twelve_signs_are_told_and_more_are_dots(monkeypatch, capsys):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(fonts, "_told", set())
    signs = "".join(chr(0x4E00 + i) for i in range(13))
    for count, told in ((12, f"has {signs[:12]}: "), (13, f"has {signs[:12]}...: ")):
        fonts.best_font.cache_clear()
        figure = Figure()
        figure.suptitle(f"{signs[:count][::-1]} \u2003 a")
        fonts.equip(figure)
        fonts.equip(figure)
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1


# ---- text of tables ----


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((999_999.4, 0), "999999"), ((1e6, 1), "1.00e+06"), ((-1e6, 1), "−1.00e+06"), ((-0.04, 1), "0.0"),
        ((-0.06, 1), "−0.1"), ((1.0, 1, math.inf), "1.0"), ((1.0, 1, -0.5), "1.0 ± −0.5"), ((1.0, 0, 0.4), "1 ± 0"),
        ((math.inf, 1, 0.5), "∞"), ((None, 1), "—"), ((0.0, 2, 0.25), "0.00 ± 0.25"), ((1e-7, 9), "0.000000100"),
    ],
)  # fmt: skip
def test_numbers_at_their_edges(arguments, text):
    assert number(*arguments) == text


def test_formulas_of_spreadsheets_are_text_and_names_too():
    data = pd.DataFrame({"=a": ["=1", "+1", "-1", "@a", "\ta", "a=1"], "n": [-1.0, 2, 3, 4, 5, 6]})
    assert to_csv(data).splitlines()[:4] == ["'=a,n", "'=1,-1.0", "'+1,2.0", "'-1,3.0"]
    assert to_csv(data).count("'") == 6
    twice = pd.DataFrame([["-x", "-y"]], columns=["a", "a"])
    assert to_csv(twice) == "a,a\n'-x,'-y\n"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("a|b*c<d>e`f\\g", r"a\|b\*c\<d\>e\`f\\g"), ("a_b", "a_b"), ("_a", r"\_a"), ("a_", r"a\_"),
        ("a _b_ c", r"a \_b\_ c"),
        ("[x](y)", r"[x\](y)"), ("[x]: y", r"[x\]: y"), ("[x][y]", r"[x\][y]"), ("[x] y", "[x] y"),
        ("**a_ b**", r"**a\_ b**"),
    ],
)  # fmt: skip
def test_markdown_shows_a_text_as_it_is(cell, shown):
    text = to_markdown(Table("x", None, pd.DataFrame({"a": [cell]})))
    assert text.splitlines()[2].strip("| ") == shown


def test_groups_are_blank_where_a_first_cell_repeats_that_above():
    shown = pd.DataFrame({"a": ["x", "x", "y", "x", "x"], "b": [1, 1, 2, 3, 4]})
    rows = [["x", "1"], ["x", "1"], ["y", "2"], ["x", "3"], ["x", "4"]]
    assert Table("x", None, shown).rows == rows
    assert [row[0] for row in Table("x", None, shown, grouped=True).rows] == ["x", "", "y", "x", ""]
    assert plain_text("****") == ("****", False)
    assert plain_text("**a**b**") == ("a**b", True)


def test_entries_are_whole_or_to_a_tenth_and_bounds_are_marked():
    assert entries(pd.Series([8.0, 8.25, 0.0])) == ["8", "8.2", "0"]
    assert entries(pd.Series([8.0, 8.25]), [False, True]) == ["≤ 8", "8.2"]
    rows = pd.DataFrame({"kv_read": [8, 4], "kv_entries": [8, 8]})
    assert reads_apart(rows)
    assert not reads_apart(rows[:1])


# ---- LaTeX ----


def wide(columns: int, letters: int, rows: int = 1) -> pd.DataFrame:
    """Columns of one head each, with cells of so many letters."""
    return pd.DataFrame([["x" * letters] * columns] * rows, columns=list("abcdefghijklmnop"[:columns]))


def test_seen_of_latex():
    grouped = pd.DataFrame({
        "Model": ["m_1", "m_1", "[b]", "*c", "*c"], "Pattern": ["D1", "**D2**", "*", "[x", "D4"],
        "Δ": ["−1.0 ± 0.5", "**0.5**", "50 %", "≤ 8", "—"],
    })  # fmt: skip
    plain = Table("plain", None, grouped, names=1)
    empty = Table("empty", None, grouped[:0], "Nothing.", names=2, grouped=True)
    long = Table("long", None, wide(2, 3, 46), "Long.", ["one", "t_w_o"], names=1, grouped=True)
    check("latex", to_latex(Table("t", None, grouped, "A 5 % loss.", ["n_1"], names=2, grouped=True)),
          *(to_latex(table).partition("\\makeatother\n")[2] for table in (plain, empty, long)))  # fmt: skip


def test_a_table_is_set_as_small_as_it_must_be_and_cut_where_it_is_too_wide():
    """A character takes 4.3 pt and a gap 12 pt, of 487.8 pt: so 113 characters in one column are 0.996 of the width."""
    for columns, letters, size, width in (
        (1, 113, "footnotesize", "1.00"), (1, 57, "footnotesize", "0.50"), (1, 114, "scriptsize", "1.00"),
        (1, 124, "scriptsize", "1.00"), (1, 125, "tiny", "1.00"), (2, 55, "footnotesize", "0.99"),
        (2, 56, "scriptsize", "1.00"),
    ):  # fmt: skip
        text = to_latex(Table("t", None, wide(columns, letters)))
        assert rf"\centering\{size}\setlength{{\tabcolsep}}{{2pt}}" in text
        assert rf"\begin{{tabular*}}{{{width}\textwidth}}" in text
    # 158 characters are 1.393 of the width, 159 are 1.402: the third column goes to another part, with the names.
    whole, cut = (to_latex(Table("t", None, wide(3, letters), "C")) for letters in (50, 55))
    assert (whole.count(r"\begin{table*}"), cut.count(r"\begin{table*}")) == (1, 2)
    assert [line for line in cut.splitlines() if line.startswith("a & ")] == [r"a & b \\", r"a & c \\"]
    assert cut.count(r"\caption{(continued)}") == cut.count(r"\addtocounter{table}{-1}") == 1
    for columns, parts in ((1, 1), (2, 1), (3, 2)):
        found = to_latex(Table("t", None, wide(columns, 999))).count(r"\begin{table*}")
        assert found == parts, "a column that is too wide alone stands alone"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Å ü ñ", "Å ü ñ"), ("ƀ ž", "U+0180 ž"), ("a\u00a0b", "a b"), ("~ }", r"\textasciitilde{} \}"),
        ("✓→↓≤≥×−", r"$\surd$$\rightarrow$$\downarrow$$\leq$$\geq$$\times$$-$"), ("“a” ‘b’ \"c\"", "``a'' `b' ''c''"),
        ("\x7f\x1f", "U+007F"), ("!?'", "!?'"),
    ],
)  # fmt: skip
def test_latex_has_what_pdflatex_has(text, shown):
    assert escape(text) == shown


# ---- files ----


def test_files_of_a_name_that_are_not_written_now_are_removed(tmp_path):
    shown = pd.DataFrame({"a": ["1"]})
    for name in ("t.csv", "t.png", "t.md.old", "other.md"):
        (tmp_path / name).write_text("old")
    written = write([Table("t", None, shown), Picture("p", Figure(figsize=(0.5, 0.5)))], tmp_path)
    assert [path.name for path in written] == ["t.md", "t.tex", "p.png", "p.pdf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.md", "p.pdf", "p.png", "t.md", "t.md.old", "t.tex",
    ]  # fmt: skip
    assert b"CreationDate" not in (tmp_path / "p.pdf").read_bytes()
    assert b"Software" not in (tmp_path / "p.png").read_bytes()
    remove_others(["p"], tmp_path, [tmp_path / "p.png"])
    assert sorted(path.name for path in tmp_path.glob("p.*")) == ["p.png"]


# ---- labels ----


def test_boxes_that_touch_overlap_and_a_box_lies_within_itself():
    box = np.array([0.0, 0.0, 2.0, 1.0])
    others = np.array([[2, 0, 3, 1], [0, 1, 1, 2], [2.01, 0, 3, 1], [0, -2, 1, -0.01], [-1, -1, 3, 3], [-2, 0, 0, 1]])
    assert labels._overlap(box, others).tolist() == [True, True, False, False, True, True]
    assert labels._is_within(box, box)
    for edge in range(4):
        outer = box + np.where(np.arange(4) == edge, 0.1 if edge < 2 else -0.1, 0.0)
        assert not labels._is_within(box, outer)
    assert labels._square(np.array([3.0, 5.0]), 2).tolist() == [1, 3, 5, 7]
    assert [labels._nearest(box, np.array(dot)).tolist() for dot in ([3, 3], [-1, 0.5], [1, -4])] == [
        [2, 1], [0, 0.5], [1, 0],
    ]  # fmt: skip


def test_a_line_crosses_a_box_also_without_a_point_in_it():
    line = Path([(0, 0), (4, 4)])
    assert labels._crosses([line], np.array([1.0, 1.0, 2.0, 2.0]))
    assert not labels._crosses([line], np.array([3.0, 0.0, 4.0, 1.0]))
    assert not labels._crosses([], np.array([1.0, 1.0, 2.0, 2.0]))
    assert labels._crosses([Path([(9, 9), (8, 8)]), line], np.array([1.0, 1.0, 2.0, 2.0]))


def test_places_of_a_label_are_beside_the_point_first_and_above_right_first_of_all():
    places = list(labels._places(np.array([10.0, 20.0]), 6.0, 2.0, 1.5))
    assert len(places) == 8 * 16
    assert [far for far, _ in places] == [False] * 32 + [True] * 96
    # At 45° of a distance of 4 points, of 1.5 pixels, and half of the text.
    shift = math.sqrt(0.5)
    assert places[0][1] == pytest.approx([10 + shift * (6 + 3), 20 + shift * (6 + 1)])
    assert places[6][1] == pytest.approx([10 + 6 + 3, 20])  # to the right
    assert places[2][1] == pytest.approx([10, 20 + 6 + 1])
    assert places[-16][1] == pytest.approx([10 + shift * (39 * 1.5 + 3), 20 + shift * (39 * 1.5 + 1)])


@pytest.fixture
def axes():
    """Axes of 100 by 100 pixels, whose units are pixels from their corner at (50, 50)."""
    with style.context():
        figure = Figure(figsize=(2, 2), dpi=100)
        figure.set_layout_engine("none")
        own = figure.add_axes((0.25, 0.25, 0.5, 0.5))
        own.set_xlim(0, 100)
        own.set_ylim(0, 100)
        yield own


def test_what_is_drawn_takes_room(axes):
    axes.plot([10, 20, 30], [10, 40, math.nan], "o", markersize=4, linestyle="-", drawstyle="steps-post")
    axes.plot([50, 60], [50, 60], marker="", linestyle="none")
    axes.plot([70], [70], marker="None", linestyle="-")
    axes.axhline(5)
    axes.scatter([80], [90])
    lines, boxes = labels._obstacles(axes, 1.0)
    assert [line.vertices.tolist() for line in lines] == [[[60, 60], [70, 60], [70, 90]]]
    assert np.array(boxes) == pytest.approx(
        np.array([[58, 58, 62, 62], [68, 88, 72, 92], [127, 137, 133, 143]]), abs=1e-6
    )


def offsets(axes) -> dict[str, list[float]]:
    return {text.get_text(): [round(float(shift)) for shift in text.get_position()] for text in axes.texts}


def test_a_label_takes_the_first_free_place(axes):
    left_out = labels.place_labels({axes: [(50, 50, "a"), (20, 20, "")]})
    assert left_out == []
    (label,) = axes.texts
    place = np.array(label.get_position())
    # At 4 points a text as small as this would touch the square that its own point takes, and so it would at 5.5 points
    # and 45° or 135°: 90° is free.
    assert place == pytest.approx([0, 5.5 + label.get_window_extent().height / 2 / (100 / 72)], abs=0.01)
    assert (label.get_color(), label.xy) == ("0.25", (50, 50))
    assert not [line for line in axes.get_children() if line.get_gid() == labels.LEADER]


@pytest.mark.parametrize(("point", "signs"), [((99, 50), (-1, 0)), ((50, 96), (0, -1)), ((99, 96), (-1, -1))])
def test_a_label_stays_within_its_axes(axes, point, signs):
    labels.place_labels({axes: [(*point, "a")]})
    assert [float(np.sign(round(shift, 6))) for shift in axes.texts[0].get_position()] == list(signs)


def test_a_point_without_a_text_takes_room_and_labels_make_way_for_each_other(axes):
    labels.place_labels({axes: [(50, 50, "a"), (50, 58, "")]})
    assert offsets(axes)["a"][1] < 0, "what is above it is another point's"
    labels.place_labels({axes: [(20, 20, "b"), (20, 20, "c")]})
    found = offsets(axes)
    assert found["b"][1] > 0 > found["c"][1]
    assert labels.place_labels({}) == []


@pytest.mark.parametrize("seed", [2, 3])
def test_no_label_stands_on_the_line_to_another(axes, seed):
    axes.figure.set_size_inches(3.6, 3.6)  # 180 by 180 pixels
    axes.set_xlim(0, 180)
    axes.set_ylim(0, 180)
    spots = np.round(np.random.default_rng(seed).normal(90, 18, (25, 2)))
    labels.place_labels({axes: [(x, y, f"p{i}") for i, (x, y) in enumerate(spots)]})
    leaders = [child for child in axes.get_children() if child.get_gid() == labels.LEADER]
    assert len(leaders) > 5
    for leader in leaders:
        line = Path(axes.transData.transform(leader.get_xydata()))
        others = [text for text in axes.texts if tuple(text.xy) != tuple(np.round(leader.get_xydata()[0]))]
        assert not any(line.intersects_bbox(text.get_window_extent(), filled=False) for text in others)


def test_without_room_a_label_is_left_out_and_a_far_one_has_a_line(axes):
    axes.plot([45, 55, 55, 45, 45], [45, 45, 55, 55, 45], marker="", color="black")
    for side in np.arange(36, 65, 4):
        axes.plot([36, 64], [side, side], marker="")
    left_out = labels.place_labels({axes: [(50, 50, "far"), (2, 2, "x" * 60)]}, colour="0.5")
    assert left_out == ["x" * 60]
    assert list(offsets(axes)) == ["far"]
    (leader,) = [child for child in axes.get_children() if child.get_gid() == labels.LEADER]
    assert leader.get_color() == axes.texts[0].get_color() == "0.5"
    assert leader.get_xydata()[0] == pytest.approx([50, 50])
    size, point = axes.texts[0].get_window_extent(), np.array([50.0, 50.0])
    ends = axes.transData.transform(leader.get_xydata()[1])
    assert ends == pytest.approx(np.clip(point + 50, size.min, size.max), abs=0.6)
    assert axes.get_xlim() == (0, 100)
