"""The table of verbs: each is one file that owns its help line, its examples and its options."""

import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import options
import pytest

from ratplus import __version__
from ratplus.sweeps import cli, verbs
from ratplus.sweeps.launch.console import PipeConsole


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


def test_options_are_as_they_were():
    before, now = options.PAGE.read_text().splitlines(), options.page().splitlines()
    other = [f"- {line}" for line in before if line not in now] + [f"+ {line}" for line in now if line not in before]
    assert now == before, "if all of this is meant, run `python -P tests/options.py`:\n" + "\n".join(other)


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
        (MemoryError(), 2, "ratplus: error: not enough memory on this machine (an allocation was refused)\n"),
        (ModuleNotFoundError("No module named 'x'"), 2, "ratplus: error: No module named 'x'; a package that ratplus "
         "needs is missing or damaged: install ratplus again\n"),
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


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("raised", [RuntimeError("odd\nthing"), Panic("odd"), KeyError("odd")])
def test_a_fault_of_ours_is_one_line_with_a_trace_in_a_file(raised, monkeypatch, capsys, tmp_path):
    def run(_arguments):
        raise raised

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli.verb_module("status"), "run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "folder"])
    assert ended.value.code == 70
    said = capsys.readouterr().err
    (trace,) = tmp_path.iterdir()
    assert said.count("\n") == 1
    assert f"a fault of ratplus {__version__}, not of your input ({type(raised).__name__}" in said
    assert f"the full trace is in {trace}; " in said
    assert "Traceback (most recent call last)" in trace.read_text()
    assert "in run\n    raise raised" in trace.read_text()


def test_a_fault_whose_trace_finds_no_place_is_shown_whole(monkeypatch, capsys, tmp_path):
    def run(_arguments):
        raise RuntimeError("odd")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(cli.verb_module("status"), "run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "folder"])
    assert ended.value.code == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_word_with_a_line_break_is_quoted_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["gc", "folder", "data.tokenizer=a\nb"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ratplus gc: error: unrecognized arguments: data.tokenizer=a b"


@pytest.mark.parametrize(
    ("shell", "codes"),
    [
        ("{} --help | :", (0, 141)),
        ("{} --version >&-", (0,)),
        ("{} --version >/dev/full", (2,)),
        ("{} --version >&- 2>&- <&-", (0,)),
        ("{} nothing 2>/dev/full", (2,)),
        ("{} nothing-×-实 2>/dev/null", (2,)),
    ],
)
def test_streams_that_nobody_reads(shell, codes):
    environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONIOENCODING="ascii", LC_ALL="C")
    line = shell.format(Path(sys.executable).with_name("ratplus"))
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, env=environment
    )
    assert done.returncode in codes
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_table_whose_reader_left_is_no_failed_cell():
    class Left(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        PipeConsole(file=Left()).print("a table")


def test_a_notebooks_backend_does_not_decide_whether_figures_are_drawn():
    code = """
import contextlib, sys
from ratplus.sweeps import cli
with contextlib.suppress(SystemExit):
    cli.main(["--version"])
import ratplus.analysis.draw.style
"""
    environment = dict(os.environ, MPLBACKEND="module://no_such_backend.at_all", MATPLOTLIBRC="/no/such/file")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
