"""The commands of docs/evaluation.md that need nothing run as they stand; test_docs_compose.py has the others."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands(language: str) -> list[list[str]]:
    lines = [line for block in blocks(language) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files: YAML where its first comment says that it lies, and a text."""
    for block in blocks("yaml"):
        if named := re.search(r"^# ([^\s:]+\.yaml):", block, re.MULTILINE):
            path = tmp_path / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    (tmp_path / "notes.txt").write_text("Sphinx of black quartz, judge my vow. " * 800)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run_in_order(place, capsys):
    from ratplus.sweeps import cli

    for words in commands("bash"):
        assert words[0] == "ratplus"
        with pytest.raises(SystemExit) as ended:
            cli.main(words[1:])
        assert not ended.value.code, (words, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "1 cells in outputs/more" in out
    assert "of these, at most 115,200 tokens a cell are counted for piqa, arc_easy" in out
    (record,) = place.glob("outputs/quick/evaluate/*/record.json")
    assert "cloze_accuracy" in record.read_text()
