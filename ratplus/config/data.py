"""`data=`: the corpus and the stacked-recall task that is mixed into it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ratplus.config.check import check


@dataclass
class RecallSection:
    """`data.recall`: the stacked-recall task mixed into every batch; `fraction` of its tokens, 0 leaves it out.

    Its rows have `length` tokens of their own, at most train.context.
    """

    fraction: float = 0.5
    length: int = 128
    keys: int = 8
    values: int = 8
    pairs: int = 8

    def __post_init__(self):
        check(0 <= self.fraction <= 1, "data.recall.fraction", self.fraction, "it must be between 0 and 1")
        for name in ("length", "keys", "values", "pairs"):
            value = getattr(self, name)
            check(value >= 1, f"data.recall.{name}", value, "it must be ≥ 1")
        check(
            self.pairs <= self.keys,
            "data.recall.pairs",
            self.pairs,
            f"every pair needs a key of its own: at most data.recall.keys={self.keys}",
        )
        check(
            self.pairs <= self.length // 2,
            "data.recall.pairs",
            self.pairs,
            f"they must fit in the first half of a row of data.recall.length={self.length} tokens",
        )


@dataclass
class DataSection:
    """`data=`: the corpus. `root` (where prepared token streams live) and `workers` do not change results.

    Args:
        source: pydocs | python_text (what this Python and its packages hold) | text (small, in memory) | files
            (parquet, JSONL, text) | hub (a data set of the Hugging Face hub) | bin (bare token streams) | prepared (a
            corpus folder).
        path: file or folder; of hub the data set's name; of bin the training stream.
        validation_fraction: of the documents (split=hash), or of a bare stream's end.
        files: which files of a folder or data set, as a glob; null takes all of a known kind.
        revision: branch, tag or commit of a hub data set.
        column: of parquet and JSONL, the one that holds the text.
        separator: line that stands between the documents of a text file; null takes each file for one document.
        tokenizer: bytes, or the path of a tokenizer.json or of a SentencePiece .model.
        eos: token or id that ends a text, where the tokenizer's file does not say it.
        split: hash (of each document's text) | file (the last `validation_files` files are validation).
        validation_path: of bin, the validation stream.
        vocab_size, eos_id: of bin without a tokenizer.
        workers: processes that tokenize, a file each at a time.
    """

    source: str = "pydocs"
    path: str | None = None
    validation_fraction: float = 0.1
    root: str = "data"
    recall: RecallSection = field(default_factory=RecallSection)
    files: str | None = None
    revision: str = "main"
    column: str = "text"
    separator: str | None = None
    tokenizer: str | None = "bytes"
    eos: Any = None
    split: str = "hash"
    validation_files: int = 1
    validation_path: str | None = None
    vocab_size: int | None = None
    eos_id: int | None = None
    workers: int = 1

    def __post_init__(self):
        sources = ("pydocs", "python_text", "text", "files", "hub", "bin", "prepared")
        check(self.source in sources, "data.source", self.source, f"allowed: {', '.join(sources)}")
        what = {"hub": "<data set>", "bin": "<token file>", "prepared": "<corpus folder>"}
        check(
            self.source in ("pydocs", "python_text") or bool(self.path),
            "data.path",
            self.path,
            f"data={self.source} needs path={what.get(self.source, '<file or folder>')}",
        )
        check(
            0 < self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be between 0 and 1",
        )
        check(self.split in ("hash", "file"), "data.split", self.split, "allowed: hash, file")
        eos = self.eos
        whole = isinstance(eos, int) and not isinstance(eos, bool)
        check(eos is None or isinstance(eos, str) or whole, "data.eos", eos, "it must be a token or an id")
        for name, least in (("validation_files", 1), ("workers", 1), ("vocab_size", 1), ("eos_id", 0)):
            value = getattr(self, name)
            check(value is None or value >= least, f"data.{name}", value, f"it must be ≥ {least}")
