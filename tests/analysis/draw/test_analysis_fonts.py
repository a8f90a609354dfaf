"""Names in scripts that DejaVu Sans does not have: drawn where a font is installed, told in one line where none is."""

import warnings

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from ratplus.analysis.draw import fonts, style


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(fonts, "_told", set())
    cached = fonts.best_font
    cached.cache_clear()
    yield
    cached.cache_clear()


def figure_with(name: str) -> Figure:
    with style.context():
        figure = Figure()
        axes = figure.add_subplot()
        (line,) = axes.plot([1, 2], label=name)
        axes.set_title(f"accuracy of {name}")
        style.legend_below(figure, [line])
    return figure


def test_without_a_font_it_is_one_line(tmp_path, monkeypatch, capsys):
    own = [font for font in font_manager.fontManager.ttflist if font.name == fonts.OWN]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure_with("实验"), tmp_path / "a")
        style.save(figure_with("实验"), tmp_path / "b")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no font of this machine has 实验" in said
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.pdf").exists()


def test_with_a_font_its_signs_are_drawn(tmp_path, monkeypatch, capsys):
    """STIX comes with matplotlib too, and has signs that DejaVu Sans lacks."""
    both = [font for font in font_manager.fontManager.ttflist if font.name in (fonts.OWN, "STIXGeneral")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", both)
    signs = FT2Font(font_manager.findfont("STIXGeneral")).get_charmap().keys()
    known = FT2Font(font_manager.findfont(fonts.OWN)).get_charmap().keys()
    sign = next(chr(code) for code in sorted(signs - known) if chr(code).isprintable())
    figure = figure_with(f"run {sign}")
    style.save(figure, tmp_path / "a")
    assert capsys.readouterr().err == ""
    families = [text.get_fontfamily() for text in figure.findobj(Text) if sign in text.get_text()]
    assert families == [[fonts.OWN, "STIXGeneral"]] * 2
    assert matplotlib.rcParams["font.family"] != [fonts.OWN, "STIXGeneral"]


def test_usual_names_look_for_no_font(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "best_font", lambda _: pytest.fail("looked"))
    style.save(figure_with("RAT+ naïve Δ 16 \u2212"), tmp_path / "a")
