"""Bare streams that can hardly be parted, and which file of a folder is its tokenizer."""

import numpy as np
import pytest

from ratplus.config.data import DataSection
from ratplus.data import tokenizer as tokenizer_module
from ratplus.data.corpus import CorpusError
from ratplus.data.sources import corpus_of
from ratplus.data.tokenizer import TokenizerError, load_tokenizer


@pytest.mark.parametrize(
    ("count", "fraction", "held"),
    [(10, 0.1, 1), (10, 0.099, None), (10, 0.5, 5), (10, 0.99, 9), (2, 0.5, 1), (1, 0.5, None), (10, 0.95, 9)],
)
def test_a_stream_is_parted_where_both_parts_hold_a_token(tmp_path, count, fraction, held):
    np.arange(count, dtype="<u2").tofile(tmp_path / "a.bin")
    facts = {"tokenizer": None, "vocab_size": 400, "eos_id": 2, "validation_fraction": fraction}
    data = DataSection(source="bin", path=str(tmp_path / "a.bin"), root=str(tmp_path / "data"), **facts)
    if held is None:
        with pytest.raises(CorpusError, match=rf"{count} tokens cannot be parted by data.validation_fraction="):
            corpus_of(data)
        return
    corpus = corpus_of(data)
    assert (corpus.train[:].tolist(), corpus.validation[:].tolist()) == (
        list(range(count - held)), list(range(count - held, count)),
    )  # fmt: skip


def saved(path, words) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0])).save(str(path))


def test_which_file_of_a_folder(tmp_path, monkeypatch):
    """tokenizer.json before tokenizer.model; one alone by its own path; none is told by its folder."""
    with pytest.raises(TokenizerError, match=r"no tokenizer.json or tokenizer.model in this folder$"):
        load_tokenizer(tmp_path)
    saved(tmp_path / "tokenizer.json", ("a", "</s>"))
    (tmp_path / "tokenizer.model").write_bytes(b"odd")
    assert load_tokenizer(tmp_path).vocab_size == 2
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 2
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    with pytest.raises(TokenizerError, match=r"tokenizer.model: "):
        load_tokenizer(tmp_path)
    size = (tmp_path / "other.json").stat().st_size
    monkeypatch.setattr(tokenizer_module, "MOST_BYTES", size)
    assert load_tokenizer(tmp_path / "other.json").vocab_size == 2
    monkeypatch.setattr(tokenizer_module, "MOST_BYTES", size - 1)
    with pytest.raises(TokenizerError, match=rf"other.json: {size:,} bytes, of which at most {size - 1:,} are read$"):
        load_tokenizer(tmp_path / "other.json")
