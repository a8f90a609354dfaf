"""The table of verbs: each is one file that owns its help line, its examples and its options."""

import shlex
from pathlib import Path

import pytest

from ratplus.sweeps import cli, verbs


def test_each_verb_is_a_file_and_each_file_a_verb():
    files = {path.stem for path in Path(verbs.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == set(cli.VERBS.values())


@pytest.mark.parametrize("name", cli.VERBS)
def test_a_verb_has_a_help_line_and_examples_that_its_own_options_take(name, capsys):
    verb = cli.verb_module(name)
    assert verb.HELP
    assert "\n" not in verb.HELP
    assert verb.EXAMPLES
    for example in verb.EXAMPLES:
        words = shlex.split(example)
        assert words[:2] == ["ratplus", name]
        cli.parser_of(name).parse_intermixed_args(words[2:])
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ratplus {name} ")
    assert all(f"  {example}\n" in shown for example in verb.EXAMPLES)


def test_the_list_of_commands_names_every_verb(capsys):
    for words, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == code
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line.startswith("  ")] == list(cli.VERBS)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ValueError("a: got 1;\nit must be 2"), 2, "ratplus: error: a: got 1; it must be 2\n"),
        (FileNotFoundError(2, "No such file", "gone"), 2, "ratplus: error: gone: No such file\n"),
        (OSError("no room"), 2, "ratplus: error: input or output: no room\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)  # fmt: skip
def test_what_a_verb_raises_becomes_an_exit_code_and_at_most_one_line(raised, code, line, monkeypatch, capsys):
    def run(_arguments):
        raise raised

    monkeypatch.setattr(cli.verb_module("status"), "run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "folder"])
    assert ended.value.code == code
    assert capsys.readouterr().err == line
