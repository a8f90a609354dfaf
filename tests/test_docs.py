"""The commands of docs/sweeps.md run as they stand; those of its `sh` blocks are in test_docs_compose.py."""

import re
import shlex
from pathlib import Path

import pytest
from cli_runs import ratplus_here

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "sweeps.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands(language: str) -> list[list[str]]:
    lines = [line for block in blocks(language) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's YAML files where it says that they lie."""
    for block in blocks("yaml"):
        path = tmp_path / re.search(r"^# ([^\s:]+\.yaml):", block, re.MULTILINE)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(words: list[str]) -> list | None:
    """Cells of a command, from the word behind `ratplus` on; None where it composes none."""
    from ratplus.sweeps.cli import VERBS, parser_of
    from ratplus.sweeps.define.compose import compose_cells

    assert words[0] in VERBS
    arguments = parser_of(words[0]).parse_intermixed_args(words[1:])
    if getattr(arguments, "add", None) or not hasattr(arguments, "overrides"):
        return None
    return compose_cells(arguments.overrides, arguments.config_dir)


def test_commands_compose(place):
    """The quick form of the test below: the words of every command mean something, and how many cells each names."""
    cells = [(words[1], composed(words[1:])) for words in commands("bash")]
    assert [len(found) for verb, found in cells if verb == "sweep"] == [6, 12, 2, 3]


@pytest.mark.slow
def test_commands_run_in_order(place):
    out = ""
    for words in commands("bash"):
        assert words[0] == "ratplus"
        done = ratplus_here(place, *words[1:])
        assert done.returncode == 0, (words, done.stderr)
        out += done.stdout
    assert "6 cells in outputs/quick; 0 of 13 stages done" in out
    assert "12 cells in outputs/mine" in out
    assert "3 done" in out
    assert '"done"' in out  # status --json


def test_shipped_sweeps_and_launchers_are_listed():
    conf = Path(__file__).parents[1] / "conf"
    for heading, group in (("shipped sweep", "sweep"), ("`launcher=`", "launcher")):
        table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
        first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
        listed = set(re.findall(r"`(\w+)`", first))
        assert listed == {p.stem for p in (conf / group).glob("*.yaml")} - {"none"}
