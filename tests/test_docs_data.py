"""The commands of docs/data.md are ones that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from ratplus.sweeps.cli import parser_of
from ratplus.sweeps.define.compose import compose_one

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
            for line in block.splitlines() if line]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line):
    ratplus, verb, *words = shlex.split(line)
    assert ratplus == "ratplus"
    arguments = parser_of(verb).parse_intermixed_args(words)
    if hasattr(arguments, "overrides"):
        assert compose_one(arguments.overrides).config.data.path


def test_every_choice_of_data_is_listed():
    table = PAGE.partition("| `data=` |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert listed == {path.stem for path in (ROOT / "conf" / "data").glob("*.yaml")}
