"""What is refused of a text before cells are planned, at its limit."""

from types import SimpleNamespace

import pytest

from ratplus.sweeps.define import manifest
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError


@pytest.mark.parametrize("split", ["train", "validation"])
def test_each_split_holds_a_token_more_than_the_context(split, monkeypatch, tmp_path):
    """The token that follows the last one of a row is its target."""
    cell = compose_one(["train.context=64", "data.recall.fraction=0"])
    lengths = {"train": 1000, "validation": 1000}

    def corpus_of(data):
        streams = {name: range(length) for name, length in lengths.items()}
        return SimpleNamespace(folder=tmp_path, identity={"tokenizer": "bytes"}, vocab_size=256, **streams)

    monkeypatch.setattr(manifest, "corpus_of", corpus_of)
    monkeypatch.setattr(manifest, "check_suites", lambda config, corpus: None)
    lengths[split] = 65
    assert len(manifest.plan_cells([cell])) == 1
    lengths[split] = 64
    with pytest.raises(UsageError, match=f"train.context=64: the {split} split of .* holds only 64 tokens"):
        manifest.plan_cells([cell])
