"""YAML files of a config folder in which few lines stand for millions of values."""

import os

import pytest

from ratplus.sweeps.define import yaml_aliases
from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.yaml_aliases import refuse_many_aliases

BOMB = "name: x\nx0: &x0 [a,b,c,d,e,f,g,h,i]\n" + "".join(
    f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 30))


@pytest.mark.parametrize("text", [BOMB, MERGED, "a: &a [*a]\n", "a: &a {b: {c: *a}}\n"])
def test_aliases_that_multiply_are_refused(tmp_path, text):
    path = tmp_path / "sweep" / "lol.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UsageError, match=r"lol.yaml: its YAML aliases"):
        compose_cells(["sweep=lol"], str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}}\n", "a & b: '*c'\n", "", "[", "a: *nobody & x\n", "- " * 3000 + "&a *b"],
)  # fmt: skip
def test_others_pass(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "y.yaml").write_bytes(b"& * \xff")
    (tmp_path / "w.yaml").symlink_to("w.yaml")
    refuse_many_aliases(tmp_path)


def test_as_many_values_as_may_be_added_and_one_more(tmp_path, monkeypatch):
    """*b stands for a list and two values, so that all of it adds three."""
    (tmp_path / "x.yaml").write_text("a: &b [1, 2]\nc: *b\n")
    monkeypatch.setattr(yaml_aliases, "MOST_COPIES", 3)
    refuse_many_aliases(tmp_path)
    monkeypatch.setattr(yaml_aliases, "MOST_COPIES", 2)
    with pytest.raises(
        UsageError, match=r"x.yaml: its YAML aliases \(\*name\) stand for more than 2 values; write out"
    ):
        refuse_many_aliases(tmp_path)


def test_a_pipe_holds_nothing_up(tmp_path):
    (tmp_path / "pattern").mkdir()
    os.mkfifo(tmp_path / "pattern" / "z.yaml")
    with pytest.raises(UsageError, match=r"z.yaml: is a pipe; a config file is a plain file"):
        compose_cells(["pattern=z"], str(tmp_path))
