r"""A table as a LaTeX file that works in two ways.

`pdflatex table.tex` compiles it as it is, to a page with the table. In a paper, `\input` it anywhere in the body, with
`\usepackage{booktabs}` in the preamble; it is then a `table*` float (both columns of a two-column paper). No other
package is needed.
"""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

from ratplus.analysis.draw.tables import Table, plain_text

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "Δ": r"$\Delta$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$",
    "·": r"$\cdot$", "ℓ": r"$\ell$", "✓": r"$\surd$", "→": r"$\rightarrow$", "↓": r"$\downarrow$",
    "—": "---", "–": "--", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'", "\u00a0": "~",
}  # fmt: skip
# All that may need another form; most of a table is digits.
_UNPLAIN = re.compile(r"[^0-9A-Za-z .,:;=+()/-]")
# A page has room for so many rows of 8 pt, with caption and notes.
_ROWS_A_PAGE = 45
# A table of 8 pt may be so many times as wide as the text: it fits once it is set at 5 pt.
_WIDEST = 1.4

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


def to_latex(table: Table) -> str:
    r"""A booktabs table of `shown`, labelled `tab:<name>` with its caption; the notes stand below.

    All text is escaped. In a grouped table the first column is written where it changes, with a rule above.
    """
    shown, names = table.shown, table.names
    first = [str(cell) for cell in shown.iloc[:, 0]]
    # A table of more rows than a page holds, or of more columns than it has room for, goes on under the same number.
    pages = [range(start, min(start + _ROWS_A_PAGE, len(shown))) for start in range(0, len(shown), _ROWS_A_PAGE)]
    # Texts of each part at once: pandas takes long to give a single row.
    parts = [(part, _texts(part), _size(part)) for part in _parts(shown, names)]
    floats = [(*part, rows) for part in parts for rows in pages or [range(0)]]
    lines = []
    for place, (part, texts, (size, width), rows) in enumerate(floats):
        lines += [r"\begin{table*}[tbp]", rf"\centering{size}\setlength{{\belowcaptionskip}}{{6pt}}"]
        if place:
            lines += [r"\addtocounter{table}{-1}", r"\caption{(continued)}"]
        elif table.caption:
            lines.append(rf"\caption{{{escape(table.caption)}}}\label{{tab:{table.name}}}")
        columns = "l" * names + "r" * (part.shape[1] - names)
        lines += [
            rf"\begin{{tabular*}}{{{width}}}{{@{{\extracolsep{{\fill}}}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(escape(name) for name in part.columns) + r" \\",
            r"\midrule",
        ]
        for row in rows:
            begins = not table.grouped or row == rows[0] or first[row] != first[row - 1]
            if table.grouped and begins and row != rows[0]:
                lines.append(r"\midrule")
            cells = [_cell(cell) if column or begins else "" for column, cell in enumerate(texts[row])]
            # A first cell that begins with [ or * would be read as an option of the \\ before it.
            cells[0] = r"\relax " + cells[0] if cells[0].startswith(("[", "*")) else cells[0]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular*}"]
        if table.notes and place == len(floats) - 1:
            lines.append(r"\par\medskip\raggedright\scriptsize")
            lines += [escape(note) + r"\par" for note in table.notes]
        lines.append(r"\end{table*}")
    return _HEAD + "\n".join(lines) + "\n\\ratplusend\n"


def escape(text: str) -> str:
    """Text as LaTeX shows it literally; characters that plain pdflatex cannot set become their code point."""
    return _UNPLAIN.sub(lambda found: _character(found[0]), " ".join(str(text).split()))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    base = unicodedata.normalize("NFD", character)[0]
    # Accented Latin letters are set up in every LaTeX; of the rest only printable ASCII is certain.
    if " " <= character <= "~" or (base < "\x7f" and "\xa0" < character < "\u0180"):
        return character
    return f"U+{ord(character):04X}"


def _cell(cell: str) -> str:
    text, bold = plain_text(cell)
    return rf"\textbf{{{escape(text)}}}" if bold else escape(text)


def _parts(shown: pd.DataFrame, names: int) -> list[pd.DataFrame]:
    """The table cut between columns into parts that fit a page's width, each with the columns of names."""
    parts, start = [], names
    while start < shown.shape[1] or not parts:
        stop = shown.shape[1]
        while stop > start + 1 and _share(_columns(shown, names, start, stop)) > _WIDEST:
            stop -= 1
        parts.append(_columns(shown, names, start, stop))
        start = stop
    return parts


def _columns(shown: pd.DataFrame, names: int, start: int, stop: int) -> pd.DataFrame:
    return shown.iloc[:, [*range(names), *range(start, stop)]]


def _texts(shown: pd.DataFrame) -> list[list[str]]:
    """The cells of each row."""
    columns = (shown.iloc[:, place].to_numpy(dtype=object) for place in range(shown.shape[1]))
    return [[str(cell) for cell in row] for row in zip(*columns)]


def _share(shown: pd.DataFrame) -> float:
    """Width at 8 pt over the text width of 6.75 in."""
    # As an array of objects: pandas takes long to step through a column of texts.
    cells = {name: shown[name].to_numpy(dtype=object) for name in shown.columns}
    widest = [max(len(str(name)), max(map(len, map(str, own)), default=0)) for name, own in cells.items()]
    # At 8 pt a character takes about 4.3 pt on average, and columns want 12 pt between them.
    return (4.3 * sum(widest) + 12 * (len(widest) - 1)) / (6.75 * 72.27)


def _size(shown: pd.DataFrame) -> tuple[str, str]:
    """Type size at which the table should fit, and the width over which to spread it."""
    share = _share(shown)
    # 8 pt, 7 pt, and for what is wider still 5 pt.
    size = r"\footnotesize" if share <= 1 else r"\scriptsize" if share <= 1.1 else r"\tiny"
    # \extracolsep adds to \tabcolsep, which is therefore small; a narrow table is not torn apart.
    return size + r"\setlength{\tabcolsep}{2pt}", rf"{min(1.0, share):.2f}\textwidth"
