"""Markdown, LaTeX and CSV: escaping, bold, groups, long tables; compiled with pdflatex where that is installed."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.draw.latex import escape, to_latex
from ratplus.analysis.draw.output import write_table
from ratplus.analysis.draw.tables import Table, number, plain_text, to_csv, to_markdown

NASTY = r"a_b [x] 50% & $5 #1 {c} \foo ~^ <i> |p| `q` * é 中 “so” ± − Δ ∞ —"


@pytest.fixture
def shown() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Model": ["attention_tiny", "attention_tiny", "[ratplus]", NASTY],
            "Pattern": ["D1", "layers[D1x2,D64]", "mixed[D1|D2]", "*"],
            "Δ loss": ["1.234 ± 0.003", "**failed**", "−0.002", "—"],
        }
    )


def compile_latex(folder, name) -> str:
    """Run pdflatex and return its log; fails the test if it fails."""
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def test_markdown(shown):
    text = to_markdown(Table("x", shown, shown, "Loss | pattern.", ["one", "t_w_o"], names=2, grouped=True))
    caption, table, notes = text.rstrip("\n").split("\n\n")
    assert caption == r"Loss \| pattern."
    assert notes == "- one\n- t_w_o"
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1  # lines up in a terminal
    assert re.fullmatch(r"\| -+ \| -+ \| -+: \|", lines[1])
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [row[0] for row in cells[2:5]] == ["attention_tiny", "", "[ratplus]"]
    assert cells[3][2] == "**failed**"
    assert cells[4][1] == r"mixed[D1\|D2]"


def test_a_cell_between_asterisks_is_bold_and_is_one_line():
    assert plain_text("**a\n b**") == ("a b", True)
    assert plain_text(" a ** b ") == ("a ** b", False)
    assert plain_text(3) == ("3", False)


def test_latex_structure(shown):
    text = to_latex(Table("x", shown, shown, "A 5% loss.", ["a_b"], names=2, grouped=True))
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 1
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"\caption{A 5\% loss.}\label{tab:x}" in text
    assert r"attention\_tiny & D1 & 1.234 $\pm$ 0.003 \\" in text
    assert r" & layers[D1x2,D64] & \textbf{failed} \\" in text
    assert text.count(r"\midrule") == 3  # below the head and between three groups
    assert r"a\_b\par" in text


def test_latex_escape():
    assert escape("100_% {x} a\nb") == r"100\_\% \{x\} a b"
    assert escape("中\x07") == "U+4E2DU+0007"
    assert escape("é") == "é"


@needs_pdflatex
def test_latex_compiles_alone_and_inside_a_paper(shown, tmp_path):
    write_table(Table("my_table", shown, shown, NASTY, [NASTY], names=2, grouped=True), tmp_path)
    assert "1 page" in compile_latex(tmp_path, "my_table.tex")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs}\begin{document}"
        r"Before. \input{my_table} Between, Table~\ref{tab:my_table}. \input{my_table.tex} After.\end{document}"
    )
    log = compile_latex(tmp_path, "paper.tex")
    assert "Output written" in log


@needs_pdflatex
def test_long_and_wide_latex_tables_fit_their_pages(tmp_path):
    rows = [["ratplus_tiny", f"D{i}", "2 of 3", *["−1.234 ± 0.003"] * 3, "12.3 ± 0.3", "1.000"] for i in range(100)]
    shown = pd.DataFrame(rows, columns=["Model", "Pattern", "Seeds", *"ABC", "Recall (%)", "FLOPs"])
    text = to_latex(Table("long", shown, shown, "Long.", names=2, grouped=True))
    assert text.count(r"\begin{table*}") == 3
    assert text.count("ratplus") - text.count("ratplusend") == 3  # named again on each page
    (tmp_path / "long.tex").write_text(text)
    log = compile_latex(tmp_path, "long.tex")
    assert "Overfull" not in log
    assert "too large" not in log


def test_csv_keeps_digits_and_leaves_null_empty():
    data = pd.DataFrame({"a": [1 / 3, np.nan, np.inf], "b": pd.array([1, None, 2], dtype="Int64")})
    assert to_csv(data) == "a,b\n0.3333333333333333,1\n,\ninf,2\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1.23456, 3), "1.235"),
        ((-0.0021, 3, 0.004), "−0.002 ± 0.004"),
        ((-0.0001, 3), "0.000"),
        ((float("nan"), 3), "—"),
        ((pd.NA, 3), "—"),
        ((float("inf"), 3, float("nan")), "∞"),
        ((float("-inf"), 3), "−∞"),
        ((2.5e17, 2), "2.50e+17"),
        ((1.0, 2, 0.0), "1.00"),
    ],
)
def test_number(arguments, text):
    assert number(*arguments) == text


def test_write_table_leaves_no_temporary_files(shown, tmp_path):
    paths = write_table(Table("t.1", shown, shown, "C"), tmp_path / "report")
    assert [path.name for path in paths] == ["t.1.md", "t.1.tex", "t.1.csv"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["t.1.csv", "t.1.md", "t.1.tex"]
    assert r"\label{tab:t.1}" in paths[1].read_text()
