"""Words and files that Hydra's own errors, or its silence, would leave a user alone with."""

import re

import pytest

from ratplus.sweeps import cli
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.override_words import expand_home
from ratplus.sweeps.verbs import generate

NANO = ["model=ratplus_nano"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model=null", "model=null: model takes the name of one choice"),
        ("model=[ratplus_tiny]", "model takes the name of one choice"),  # which Hydra drops
        ("logger=1", "logger=1: logger takes the name of one choice"),
        ("pattern={a:1}", "pattern={a:1}: holds a key that pattern has not; give each as pattern.key=value"),
        ("=x", "'=x': no key before ="),
        ("output=[a]", "output: got a list (['a']); it must be one text"),
        ("output={a:1}", "output: got a mapping"),
        ("seed=range(1,5,0)", "seed=range(1,5,0): its values cannot be listed"),
        ("seed=range(1,3,nan)", "its values cannot be listed"),
        ("seed=range(0,1e9)", "seed=range(0,1e9): more than 100,000 values"),
        ("seed=range(1,1)", "matches nothing"),
    ],
)
def test_one_line_names_the_word(word, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        compose_cells([*NANO, word])


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("experiment/x", "# @package _global_\nhydra:\n  run:\n    dir: /tmp/x\n", "hydra.run.dir"),
        ("experiment/x", "# @package _global_\ndefaults:\n  - override /hydra/launcher: basic\n", "/hydra/launcher"),
        ("pattern/x", "# @package hydra.run\ndir: x\n", "hydra.run"),
    ],
)
def test_a_hydra_section_of_a_file_is_refused(tmp_path, file, content, told):
    path = tmp_path / f"{file}.yaml"
    path.parent.mkdir()
    path.write_text(content)
    group = file.partition("/")[0]
    with pytest.raises(UsageError, match=rf"x.yaml: .*{told}: has no effect.*output= names the folder"):
        compose_one([*NANO, f"{group}=x"], str(tmp_path))


def test_home_folders_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    request = generate.parse(["model=~/m", "prompt=~ is a sign", "tokenizer=~/t.json", "sweep=~"])
    assert (request.model, request.tokenizer, request.sweep) == (f"{tmp_path}/m", f"{tmp_path}/t.json", str(tmp_path))
    assert request.prompt == "~ is a sign"
    assert cli._expand_home("--config-dir=~/my") == f"--config-dir={tmp_path}/my"
    assert cli._expand_home("prompt=~/x") == "prompt=~/x"
    for word in ("--config-dir=~nobody-of-this-name/x", "model=~nobody-of-this-name"):
        with pytest.raises(UsageError, match="there is no home folder of that name"):
            cli._expand_home(word) if word.startswith("--") else generate.parse([word, "prompt=x"])


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("data.path=~/a", 'data.path="HOME/a"'), ("data.path=~", 'data.path="HOME"'),
        ("data.path=~/a,~/b", 'data.path="HOME/a","HOME/b"'), ("data.path=~/a,/b", 'data.path="HOME/a","/b"'),
        ("data.path=/a~/b", "data.path=/a~/b"), ("model.name=~/a", "model.name=~/a"), ("~data.path", "~data.path"),
    ],
)  # fmt: skip
def test_home_folders_in_overrides(monkeypatch, tmp_path, word, expanded):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home(word) == expanded.replace("HOME", str(tmp_path))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 10**30])
def test_a_seed_that_no_generator_takes(seed):
    with pytest.raises(UsageError, match=f"seed: got {seed}"):
        generate.parse(["model=m", "prompt=x", f"seed={seed}"])


@pytest.mark.parametrize("prompt", ["caf\udce9", "\ud800"])
def test_a_prompt_that_is_no_text(prompt):
    """Python reads bytes of the command line that are no UTF-8 as halves of surrogate pairs."""
    with pytest.raises(UsageError, match="prompt: not UTF-8 text"):
        generate.parse(["model=m", f"prompt={prompt}"])
