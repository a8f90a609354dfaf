"""DataFrames to Markdown, LaTeX and CSV files.

A table has two faces: `data`, the frame of plain values that goes to CSV, and `shown`, a frame of strings already
rounded for a reader, that goes to Markdown and LaTeX. In `shown`, a cell written `**so**` is bold in both, and rows
may be grouped by their first column: its repeated values are left blank and a rule separates the groups.

The LaTeX file works in two ways. `pdflatex table.tex` compiles it as it is, to a page with the table. In a paper,
`\\input` it anywhere in the body, with `\\usepackage{booktabs}` in the preamble; it is then a `table*` float.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ratplus.record import write_atomically

_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "Δ": r"$\Delta$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$",
    "·": r"$\cdot$", "—": "---", "–": "--", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'", "\u00a0": "~",
}  # fmt: skip
_MARKDOWN_SPECIAL = re.compile(r"[\\|*<>`]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BOLD = re.compile(r"\*\*(.+)\*\*")

# `\@nodocument` is \relax exactly from \begin{document} on: so the file can tell whether a paper inputs it.
_LATEX_HEAD = r"""% Compiles as it is (pdflatex), and can be \input in the body of a paper that loads booktabs.
\makeatletter
\ifx\@nodocument\relax
  \let\ratplusend\relax
\else
  \documentclass{article}
  \usepackage{booktabs}
  \setlength{\textwidth}{6.75in}\setlength{\oddsidemargin}{0in}\pagestyle{empty}
  \def\ratplusend{\end{document}}
  \begin{document}
\fi
\makeatother
"""


def write_table(
    stem: Path,
    data: pd.DataFrame,
    shown: pd.DataFrame,
    *,
    caption: str,
    notes: Sequence[str] = (),
    names: int = 1,
    grouped: bool = False,
) -> list[Path]:
    """Write `<stem>.md`, `<stem>.tex` and `<stem>.csv`, each whole or not at all; returns the three paths.

    Args:
        stem: path without suffix; its name becomes the LaTeX label `tab:<name>`.
        data: for the CSV file.
        shown: strings, for Markdown and LaTeX.
        caption: one paragraph of plain text.
        notes: lines under the table, such as cells without a result.
        names: how many leading columns hold names (left-aligned); numbers follow (right-aligned).
        grouped: whether rows with the same first column form a group.
    """
    stem = Path(stem)
    texts = {
        ".md": to_markdown(shown, caption=caption, notes=notes, names=names, grouped=grouped),
        ".tex": to_latex(shown, caption=caption, label=f"tab:{stem.name}", notes=notes, names=names, grouped=grouped),
        ".csv": to_csv(data),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_atomically(paths[-1], text)
    return paths


def to_csv(data: pd.DataFrame) -> str:
    """Comma-separated text, one header line; null is empty, infinite is `inf`, numbers keep all their digits."""
    return data.to_csv(index=False, lineterminator="\n")


def to_markdown(
    shown: pd.DataFrame, *, caption: str = "", notes: Sequence[str] = (), names: int = 1, grouped: bool = False
) -> str:
    """A pipe table (GitHub), with the caption above and the notes as a list below."""
    starts = _group_starts(shown, grouped)
    rows = [
        [_markdown(cell) if column or row in starts else "" for column, cell in enumerate(cells)]
        for row, cells in enumerate(shown.itertuples(index=False, name=None))
    ]
    table = [[_markdown(name) for name in shown.columns], *rows]
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(shown.shape[1])]
    lines = ["| " + " | ".join(_pad(cell, widths[i], i < names) for i, cell in enumerate(row)) + " |" for row in table]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    parts = [_markdown(caption)] if caption else []
    parts.append("\n".join(lines))
    if notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def to_latex(
    shown: pd.DataFrame,
    *,
    caption: str = "",
    label: str = "",
    notes: Sequence[str] = (),
    names: int = 1,
    grouped: bool = False,
) -> str:
    """A booktabs table that compiles alone and inside a paper (see the module's docstring); the notes stand below."""
    starts = _group_starts(shown, grouped)
    lines = [
        r"\begin{table*}[tbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{6pt}",
    ]
    if caption:
        lines.append(rf"\caption{{{latex_escape(caption)}}}")
    if label:
        lines.append(rf"\label{{{label}}}")
    lines += [
        rf"\begin{{tabular}}{{@{{}}{'l' * names}{'r' * (shown.shape[1] - names)}@{{}}}}",
        r"\toprule",
        " & ".join(latex_escape(name) for name in shown.columns) + r" \\",
        r"\midrule",
    ]
    for row, cells in enumerate(shown.itertuples(index=False, name=None)):
        if grouped and row and row in starts:
            lines.append(r"\midrule")
        texts = [_latex(cell) if column or row in starts else "" for column, cell in enumerate(cells)]
        # \relax: a first cell that begins with [ would be read as the option of the \\ before it.
        lines.append((r"\relax " if texts[0].startswith(("[", "*")) else "") + " & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes:
        lines.append(r"\par\medskip\raggedright\scriptsize")
        lines += [latex_escape(note) + r"\par" for note in notes]
    lines.append(r"\end{table*}")
    return _LATEX_HEAD + "\n".join(lines) + "\n\\ratplusend\n"


def number(value: float, digits: int, stderr: float = float("nan")) -> str:
    """A rounded number with a true minus sign, and ` ± stderr` where that is known; `—` for null, `∞` for infinite."""
    if pd.isna(value):
        return "—"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    if float(text) == 0:
        text = text.lstrip("-")
    # A spread of zero means that nothing is known about it (one item, equal seeds): do not claim exactness.
    if pd.isna(stderr) or stderr in (0, float("inf")):
        return text.replace("-", "−")
    return f"{text} ± {stderr:.{digits}f}".replace("-", "−")


def latex_escape(text: str) -> str:
    """Text as LaTeX shows it literally; characters that plain pdflatex cannot set become their code point."""
    return "".join(_latex_character(character) for character in " ".join(str(text).split()))


def _latex_character(character: str) -> str:
    if character in _LATEX_SPECIAL:
        return _LATEX_SPECIAL[character]
    base = unicodedata.normalize("NFD", character)[0]
    # Accented Latin letters are set up in every LaTeX; of the rest only ASCII is certain.
    return (
        character if ord(character) < 127 or (base < "\x7f" and ord(character) < 0x180) else f"U+{ord(character):04X}"
    )


def _latex(cell: str) -> str:
    bold = _BOLD.fullmatch(str(cell))
    return rf"\textbf{{{latex_escape(bold[1])}}}" if bold else latex_escape(cell)


def _markdown(cell: str) -> str:
    text = " ".join(str(cell).split())
    bold = _BOLD.fullmatch(text)
    escaped = _MARKDOWN_SPECIAL.sub(lambda found: "\\" + found[0], bold[1] if bold else text)
    return f"**{escaped}**" if bold else escaped


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _group_starts(shown: pd.DataFrame, grouped: bool) -> set[int]:
    """Rows whose first column is written: all of them, or those where it changes."""
    first = list(shown.iloc[:, 0])
    return {row for row in range(len(first)) if not grouped or row == 0 or first[row] != first[row - 1]}
