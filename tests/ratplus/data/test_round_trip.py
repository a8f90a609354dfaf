"""Text that a tokenizer loses is told and, beyond a limit, refused; a byte-order mark is no text."""

from dataclasses import replace
from pathlib import Path

import pytest
from corpora import train_bpe

from ratplus.config.data import DataSection
from ratplus.data.corpus import CorpusError, open_corpus
from ratplus.data.round_trip import RoundTrip, check_loss, merged
from ratplus.data.sources import prepare
from ratplus.data.tokenizer import ByteTokenizer, load_tokenizer

MARK = b"\xef\xbb\xbf"


def few_letters(path: Path) -> Path:
    """A tokenizer of single ASCII letters without byte fallback: it drops every other character."""
    from tokenizers import Tokenizer, decoders, models

    letters = {"<eos>": 0} | {chr(code): code - 31 for code in range(32, 127)}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    for part in range(2):
        lines = [f'{{"text": "naïve café number {part} {i}"}}' for i in range(150)]
        (tmp_path / "in" / f"{part}.jsonl").write_text("\n".join(lines))
    (tmp_path / "text.txt").write_text("naïve café number\n" * 300)
    return tmp_path


@pytest.mark.parametrize("source", ["files", "text"])
def test_a_loss_is_refused_or_told(files, source):
    said = []
    path = files / ("in" if source == "files" else "text.txt")
    data = DataSection(
        source=source, path=str(path), root=str(files / "out"), tokenizer=str(few_letters(files / "few.json")),
        eos="<eos>",
    )  # fmt: skip
    with pytest.raises(CorpusError, match=r"do not come back .* such as [ïé], [ïé]; data\.lossy=0\.001 allows 0\.1 %"):
        prepare(data, said.append)
    assert not list(files.glob("out/*/manifest.json")), "a corpus that was refused is not there"
    assert not [line for line in said if "loses" in line]
    corpus = open_corpus(prepare(replace(data, lossy=0.2), said.append))
    assert len(corpus.train)
    assert any("loses text" in line and "do not come back when ids are decoded" in line for line in said)


def test_what_loses_nothing_says_nothing(files):
    said = []
    bpe = train_bpe(files / "bpe" / "tokenizer.json")
    for tokenizer in ("bytes", str(bpe)):
        data = DataSection(source="text", path=str(files / "text.txt"), root=str(files / "out"), tokenizer=tokenizer)
        prepare(replace(data, lossy=0.0), said.append)
    assert said == []


def test_the_sample_counts_characters_and_adds_up(files):
    tokenizer = load_tokenizer(few_letters(files / "few.json"), "<eos>")
    one, other = RoundTrip(), RoundTrip()
    one.look(tokenizer, "abc é\n")  # white space is not counted
    other.look(tokenizer, "日本")
    assert (one.seen, one.lost, other.seen, other.lost) == (4, 1, 2, 2)
    whole = merged([one.facts(), other.facts(), {}])
    assert (whole.seen, whole.lost, whole.share) == (6, 3, 0.5)
    assert "3 of 6 characters looked at (50 %)" in check_loss(whole, tokenizer, 0.5)
    with pytest.raises(CorpusError, match=r"accept the loss with data\.lossy=0\.5"):
        check_loss(whole, tokenizer, 0.4)
    assert check_loss(RoundTrip(), tokenizer, 0.0) == ""
    many = RoundTrip()
    for number in range(3000):
        many.look(tokenizer, f"document {number}")
    assert 32 < many.seen / len("document0") < 300  # a sample, not all of it
    own = RoundTrip()
    own.look(ByteTokenizer(), "é")
    assert own.seen == 0


@pytest.mark.parametrize("source", ["files", "text"])
def test_a_byte_order_mark_is_no_text(tmp_path, source):
    text = b"".join(b"line %d of a book\n\n" % i for i in range(300))
    streams = []
    for name, content in (("plain", text), ("marked", MARK + text)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(content)
        data = DataSection(
            source=source, path=str(tmp_path / name), root=str(tmp_path / "out"),
            separator="" if source == "files" else None,
        )  # fmt: skip
        corpus = open_corpus(prepare(data, lambda _line: None))
        streams.append((bytes(corpus.train.astype("uint8")), bytes(corpus.validation.astype("uint8"))))
    assert streams[0] == streams[1]
    assert MARK not in b"".join(streams[1])
