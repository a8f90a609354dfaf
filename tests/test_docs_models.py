"""The Python of docs/models.md and docs/data.md runs, on tiny folders where the pages have large ones."""

import re
from pathlib import Path

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.checkpoint import save
from ratplus.data.corpus import write_corpus
from ratplus.data.tokenizer import ByteTokenizer

DOCS = Path(__file__).parents[1] / "docs"


def python_of(page: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return code


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model(place):
    model = RATPlus(ModelConfig(257, 2, 32, 16, max_len=64))
    save(model, "models/smollm2", ByteTokenizer(), PatternMap.uniform(Pattern(4), 2, 2))
    names: dict = {}
    exec(python_of("models.md"), names)
    assert names["logits"].shape == (1, 24, 257)
    assert names["kept"]["after"].shape == (1, 24, 32)
    head = torch.nn.functional.linear(names["model"].norm(names["kept"]["after"]), names["model"].embed.weight)
    assert torch.allclose(head, names["logits"], atol=1e-6)  # of two layers, layer 1 is the last
    assert isinstance(names["text"], str)


def test_a_corpus(place):
    documents = ((f"text {i}", f"Words of text {i}. " * 9) for i in range(40))
    write_corpus(Path("corpora/fineweb_edu"), documents, source={"name": "here"}, validation_fraction=0.3)
    names: dict = {}
    exec(python_of("data.md"), names)
    assert type(names["corpus"]).__name__ == "Corpus"
    assert "Words of text" in names["text"]
