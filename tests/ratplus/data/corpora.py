"""Small input files and tokenizers for the tests of data preparation."""

import gzip
import json
from pathlib import Path

import numpy as np

WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "was",
    "he",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "I",
]


def texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of made-up English, each another one, with line breaks and some letters beyond ASCII."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        chosen = draw.choice(WORDS, size=int(draw.integers(3, words))).tolist()
        made.append(f"Text {seed}/{number}: " + " ".join(chosen) + ("\nÜber café.\n" if number % 3 else "\n"))
    return made


def write_jsonl(path: Path, documents: list, column: str = "text") -> Path:
    data = "".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(documents)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        import zstandard

        # Two frames, as writers that append leave them.
        half = data.index(b"\n", len(data) // 2) + 1
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, documents: list, column: str = "text", rows: int = 7) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({"id": list(range(len(documents))), column: documents})
    parquet.write_table(table, path, row_group_size=rows)
    return path


def train_bpe(path: Path, vocab: int = 400, special: str = "<|endoftext|>") -> Path:
    """A byte-level BPE tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[special], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(200), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def train_sentencepiece(path: Path, vocab: int = 400) -> Path:
    """A SentencePiece BPE model with byte fallback, as LLaMA-2's is: ids 0, 1, 2 are unknown, begin and end."""
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(200)), model_writer=made, vocab_size=vocab, model_type="bpe", byte_fallback=True,
        num_threads=1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.getvalue())
    return path
