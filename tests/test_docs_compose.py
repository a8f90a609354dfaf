"""The commands in `sh` blocks of docs/: they need data, weights or a cluster, so here they only parse and compose."""

import re
import shlex
from pathlib import Path

import pytest

from ratplus.sweeps.cli import VERBS, parser_of
from ratplus.sweeps.define.compose import compose_cells

DOCS = Path(__file__).parents[1] / "docs"


def commands() -> list[tuple[str, list[str]]]:
    """(page, words from the verb on) of every ratplus command, whatever starts it."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                places = [i for i, word in enumerate(words[:-1]) if Path(word).name.rstrip(")") == "ratplus"]
                found += [(page.name, words[i + 1 :]) for i in places if words[i + 1] in VERBS]
    return found


def test_most_pages_have_commands():
    pages = [page for page, _ in commands()]
    assert {"scale.md", "evaluation.md", "sweeps.md", "data.md", "ablation.md"} <= set(pages)
    assert len(pages) > 20


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda part: part if isinstance(part, str) else part[0])
def test_commands_parse_and_compose(page, words, tmp_path, monkeypatch):
    (tmp_path / "mytask.yaml").write_text("task: mine\n")  # of docs/evaluation.md
    monkeypatch.chdir(tmp_path)
    arguments = parser_of(words[0]).parse_intermixed_args(words[1:])
    if getattr(arguments, "add", None):  # the first word is a folder, and the suite's name a choice of `eval`
        arguments.overrides[0] = f"eval={arguments.add}"
    if hasattr(arguments, "overrides"):
        sweeps = words[0] == "sweep"
        # The other seeds of a sweep compose as the first does (test_compose.py counts them).
        one_seed = ["seed=0"] if sweeps and not any(word.startswith("seed=") for word in words) else []
        assert compose_cells([*arguments.overrides, *one_seed], arguments.config_dir, sweep=sweeps)
