"""Fonts for names in scripts that matplotlib's own font does not have, such as Chinese, Japanese and Korean."""

from __future__ import annotations

import sys
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from ratplus.records.lines import plain

OWN = "DejaVu Sans"
# Parts of the names of fonts for many scripts, the likeliest first; of others the first that fits is taken.
_WIDE = (
    "noto sans cjk", "source han sans", "wenquanyi", "noto sans", "pingfang", "hiragino", "microsoft yahei", "simhei",
    "yu gothic", "ipa", "malgun", "nanum", "arial unicode", "unifont",
)  # fmt: skip
_told: set[str] = set()


def equip(figure: Figure) -> None:
    """Give the texts of a figure a font for what the usual one lacks, if one is installed; else say so in one line."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
    lacking = {char for text in texts for char in text.get_text() if not char.isspace() and not _has(_own_file(), char)}
    if not lacking:
        return
    family, covered = best_font("".join(sorted(lacking)))
    if family is not None:
        for text in texts:
            text.set_fontfamily([OWN, family])
    missing = "".join(sorted(lacking - covered))
    if missing and missing not in _told:
        _told.add(missing)
        some = plain(missing[:12]) + ("..." if missing[12:] else "")
        print(
            f"warning: no font of this machine has {some}: figures show boxes in their place, tables and the page the "
            "names; install one that has, such as Noto Sans CJK",
            file=sys.stderr,
        )


@lru_cache(maxsize=64)
def best_font(characters: str) -> tuple[str | None, frozenset[str]]:
    """(family, which of these characters it has) of the installed font that has most of them; None if none has any."""
    best: tuple[str | None, frozenset[str]] = (None, frozenset())
    for font in sorted(font_manager.fontManager.ttflist, key=_rank):
        if font.style != "normal":
            continue
        covered = frozenset(character for character in characters if _has(font.fname, character))
        if len(covered) > len(best[1]):
            best = font.name, covered
        if len(covered) == len(characters):
            break
    return best


def _rank(font) -> tuple[int, int, str]:
    place = next((number for number, part in enumerate(_WIDE) if part in font.name.lower()), len(_WIDE))
    return place, abs(int(font.weight) - 400) if str(font.weight).isdigit() else 0, font.name


def _own_file() -> str:
    return font_manager.findfont(OWN)


@lru_cache(maxsize=256)
def _font(path: str) -> FT2Font | None:
    try:
        return FT2Font(path)
    except (OSError, RuntimeError):  # removed since the list of fonts was made, or damaged
        return None


def _has(path: str, character: str) -> bool:
    font = _font(path)
    return font is not None and font.get_char_index(ord(character)) > 0
