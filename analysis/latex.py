r"""A table as a LaTeX file that works in two ways.

`pdflatex table.tex` compiles it as it is, to a page with the table. In a paper, `\input` it anywhere in the body, with
`\usepackage{booktabs}` in the preamble; it is then a `table*` float (both columns of a two-column paper). No other
package is needed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pandas as pd

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "Δ": r"$\Delta$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$",
    "·": r"$\cdot$", "—": "---", "–": "--", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'", "\u00a0": "~",
}  # fmt: skip
_BOLD = re.compile(r"\*\*(.+)\*\*")
# Rows of 8 pt, with caption and notes, that a page has room for.
_ROWS_A_PAGE = 45

# `\@nodocument` is \relax exactly from \begin{document} on: so the file can tell whether a paper inputs it.
_HEAD = r"""% Compiles as it is (pdflatex), and can be \input in the body of a paper that loads booktabs.
\makeatletter
\ifx\@nodocument\relax
  \let\ratplusend\relax
\else
  \documentclass{article}
  \usepackage{booktabs}
  \setlength{\textwidth}{6.75in}\setlength{\oddsidemargin}{-0.125in}
  \setlength{\textheight}{9.5in}\setlength{\topmargin}{-0.75in}\pagestyle{empty}
  \def\ratplusend{\end{document}}
  \begin{document}
\fi
\makeatother
"""


def to_latex(
    shown: pd.DataFrame,
    *,
    caption: str = "",
    label: str = "",
    notes: Sequence[str] = (),
    names: int = 1,
    grouped: bool = False,
) -> str:
    """A booktabs table from a frame of strings, in which `**so**` is bold; the notes stand below.

    Args:
        shown: the cells; all text is escaped.
        caption: one paragraph of plain text.
        label: for `\\ref`, with the caption.
        notes: lines below.
        names: how many leading columns hold names (left-aligned); numbers follow (right-aligned).
        grouped: write the first column where it changes, with a rule above, instead of on every row.
    """
    size, width = _size(shown)
    columns = "l" * names + "r" * (shown.shape[1] - names)
    first = [str(cell) for cell in shown.iloc[:, 0]]
    # A table of more rows than a page holds goes on in further floats under the same number.
    pages = [range(start, min(start + _ROWS_A_PAGE, len(shown))) for start in range(0, len(shown), _ROWS_A_PAGE)]
    lines = []
    for page, rows in enumerate(pages or [range(0)]):
        lines += [r"\begin{table*}[tbp]", rf"\centering{size}\setlength{{\belowcaptionskip}}{{6pt}}"]
        if page:
            lines += [r"\addtocounter{table}{-1}", r"\caption{(continued)}"]
        elif caption:
            lines.append(rf"\caption{{{escape(caption)}}}" + (rf"\label{{{label}}}" if label else ""))
        lines += [
            rf"\begin{{tabular*}}{{{width}}}{{@{{\extracolsep{{\fill}}}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(escape(name) for name in shown.columns) + r" \\",
            r"\midrule",
        ]
        for row in rows:
            begins = not grouped or row == rows[0] or first[row] != first[row - 1]
            if grouped and begins and row != rows[0]:
                lines.append(r"\midrule")
            cells = [_cell(cell) if column or begins else "" for column, cell in enumerate(shown.iloc[row])]
            # A first cell that begins with [ or * would be read as an option of the \\ before it.
            cells[0] = r"\relax " + cells[0] if cells[0].startswith(("[", "*")) else cells[0]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular*}"]
        if notes and page == max(0, len(pages) - 1):
            lines.append(r"\par\medskip\raggedright\scriptsize")
            lines += [escape(note) + r"\par" for note in notes]
        lines.append(r"\end{table*}")
    return _HEAD + "\n".join(lines) + "\n\\ratplusend\n"


def escape(text: str) -> str:
    """Text as LaTeX shows it literally; characters that plain pdflatex cannot set become their code point."""
    return "".join(_character(character) for character in " ".join(str(text).split()))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    base = unicodedata.normalize("NFD", character)[0]
    # Accented Latin letters are set up in every LaTeX; of the rest only printable ASCII is certain.
    if " " <= character <= "~" or (base < "\x7f" and "\xa0" < character < "\u0180"):
        return character
    return f"U+{ord(character):04X}"


def _cell(text: str) -> str:
    bold = _BOLD.fullmatch(str(text))
    return rf"\textbf{{{escape(bold[1])}}}" if bold else escape(text)


def _size(shown: pd.DataFrame) -> tuple[str, str]:
    """Type size at which the table should fit a text width of 6.75 in, and the width over which to spread it."""
    widest = [max([len(str(name)), *(len(str(cell)) for cell in shown[name])]) for name in shown.columns]
    # At 8 pt a character takes about 4.3 pt on average, and columns want 12 pt between them.
    share = (4.3 * sum(widest) + 12 * (len(widest) - 1)) / (6.75 * 72.27)
    size = r"\footnotesize" if share <= 1 else r"\scriptsize"
    # \extracolsep adds to \tabcolsep, which is therefore small; a narrow table is not torn apart.
    return size + r"\setlength{\tabcolsep}{2pt}", rf"{min(1.0, share):.2f}\textwidth"
