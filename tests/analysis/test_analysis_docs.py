"""What docs/analysis.md says is so: its example runs, its commands exist, its columns are the frame's."""

import re
import runpy
import shlex
import sys
from pathlib import Path

from ratplus.analysis.frame.load import FIXED, METRICS
from ratplus.analysis.report import MODULES
from ratplus.sweeps.cli import parser_of

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")


def test_the_example_draws_a_figure(demo, tmp_path, monkeypatch):
    code = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]
    path = tmp_path / "mine.py"
    path.write_text(code)
    monkeypatch.setattr(sys, "argv", ["mine.py", str(demo)])
    runpy.run_path(str(path), run_name="__main__")
    figures = [demo / "report" / f"mine.{suffix}" for suffix in ("png", "pdf")]
    assert all(figure.stat().st_size > 1000 for figure in figures)
    for figure in figures:
        figure.unlink()


def test_commands_are_understood():
    commands = [
        shlex.split(line, comments=True)
        for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    reports = [words for words in commands if words[0] == "ratplus"]
    assert [words[1] for words in reports] == ["report"] * 5 + ["best", "compare", "report", "report"], reports
    for words in reports:
        folder = parser_of(words[1]).parse_args(words[2:]).folder
        assert (folder if isinstance(folder, str) else folder[0]).startswith("outputs/")


def test_columns_and_modules_are_all_there():
    table = PAGE.partition("| column | meaning |")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in line.split("|")[1].strip().split(", ")]
    assert named == [*FIXED, *METRICS]
    for module in MODULES:
        assert f"| `{module.NAME}` |" in PAGE
