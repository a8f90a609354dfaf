"""The README's commands and code do what it says."""

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_python_runs():
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert names["dense"].shape == names["hybrid"].shape == (2, 128, 257)
    assert names["text"].shape == (2, 16)


def test_every_command_is_known():
    from ratplus.sweeps.cli import VERBS

    heads = {words[0] for words in commands()}
    assert heads == {"make", "source", "ratplus"}
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for words in commands():
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        if words[0] == "ratplus":
            assert words[1] in VERBS


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The README's YAML files where it says that they lie."""
    for block in blocks("yaml"):
        path = tmp_path / re.match(r"# (\S+):", block)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [w for w in commands() if w[:2] == ["ratplus", "sweep"]], ids=" ".join)
def test_sweeps_compose(words, own_files):
    from ratplus.sweeps.cli import parser_of
    from ratplus.sweeps.define.compose import compose_cells

    arguments = parser_of("sweep").parse_intermixed_args(words[2:])
    cells = compose_cells(arguments.overrides, arguments.config_dir)
    assert len(cells) >= 3


def test_groups_are_listed_in_full():
    conf = Path(__file__).parents[1] / "conf"
    for group in ("model", "pattern", "data", "train", "eval", "sweep", "launcher", "trainer", "logger", "experiment"):
        (row,) = (line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        assert set(re.findall(r"`(\w+)`", row)) - {group} == {p.stem for p in (conf / group).glob("*.yaml")}


def test_dependencies_are_justified():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    table = README.partition("| package | for |")[2].partition("##")[0]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for requirement in wanted:
        if requirement.startswith("ratplus["):
            continue  # extras in the extra of developers
        assert re.match(r"[\w-]+", requirement)[0] in table
