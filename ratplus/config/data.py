"""`data=`: the corpus and the stacked-recall task that is mixed into it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ratplus.config.check import check, check_least
from ratplus.pattern import is_whole


@dataclass
class RecallSection:
    """`data.recall`: the stacked-recall task, mixed into every batch in rows of its own."""

    fraction: float = 0.5
    """Share of each batch's tokens that are recall rows; 0 leaves the task out. Half, so that a model of minutes learns
    to recall. Allowed: ≥ 0, ≤ 1."""
    length: int = 128
    """Tokens of a recall row, at most train.context. 128, so that about half of the questions reach back further than
    64 tokens. Allowed: ≥ 1."""
    keys: int = 8
    """Distinct keys. Few, so that minutes of training suffice. Allowed: ≥ 1."""
    values: int = 8
    """Distinct values: guessing is right in one of so many. Allowed: ≥ 1."""
    pairs: int = 8
    """(key, value) pairs stored in the first half of a row, each with a key of its own. As many as there are keys: a
    row uses all. Allowed: ≥ 1."""

    def __post_init__(self):
        check(0 <= self.fraction <= 1, "data.recall.fraction", self.fraction, "it must be between 0 and 1")
        check_least(self, "data.recall", length=1, keys=1, values=1, pairs=1)
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
    """`data=`: the corpus, and the recall task in it. `root` and `workers` change no result."""

    source: str = "pydocs"
    """Where text comes from: pydocs (the English text that Python ships), python_text (source code and documentation of
    this Python and its packages, collected once) and text (your own files) are small and read into memory; files
    (parquet, JSONL, text), hub (a data set of the Hugging Face hub), bin (bare token streams) and prepared (a corpus
    folder of `ratplus prepare`) may be of any size. pydocs needs no download. Allowed: pydocs, python_text, text,
    files, hub, bin, prepared."""
    path: str | None = None
    """File or folder of the source; of hub the data set's name, of bin the training stream. pydocs and python_text need
    none. Allowed: a path or name, null."""
    validation_fraction: float = 0.1
    """Share of the documents (split=hash), or of a bare stream's end, that is held out. A tenth, since the default
    corpus is small; the large ones hold out 0.005. Allowed: > 0, < 1."""
    root: str = "data"
    """Folder in which prepared token streams are kept and shared by sweeps; changes no result. Below the working
    folder, since corpora of the demo are small. Allowed: a folder."""
    recall: RecallSection = field(default_factory=RecallSection)
    files: str | None = None
    """Which files of a folder or data set are read, as a glob. Null takes all of a kind that can be read. Allowed: a
    glob, null."""
    revision: str = "main"
    """Branch, tag or commit of a hub data set. main is the hub's default branch. Allowed: any text."""
    column: str = "text"
    """Column of parquet and JSONL files that holds the text. That is what most data sets call it. Allowed: any text."""
    separator: str | None = None
    """Line that stands between the documents of a text file. Null takes each file for one document. Allowed: any text,
    null."""
    tokenizer: str | None = "bytes"
    """bytes, or the path of a tokenizer.json or of a SentencePiece .model; null only where source=bin gives no text.
    Bytes need no file. Allowed: bytes, a path, null."""
    eos: Any = None
    """Token, or its id, that ends a text. Null takes what the tokenizer's file says. Allowed: a token, ≥ 0, null."""
    bos: Any = None
    """Token, or its id, that begins every text of the corpus and every prompt; true takes the one that the tokenizer's
    file puts there, as those of Llama and Mistral do. Null puts none, as in the paper. Allowed: true, a token, ≥ 0,
    null."""
    lossy: float = 0.001
    """Largest share of characters that may not come back when the tokenizer's ids are decoded (a sample is looked at);
    more is refused. A thousandth, since rare symbols are no loss that a model would notice, while a tokenizer without
    byte fallback may drop whole scripts. Allowed: 0 to 1."""
    longest_mib: int = 64
    """Longest line of JSONL, and longest text of a parquet row, that is read, in MiB; a longer one is refused. It is in
    memory several times over: about 7 times with bytes. A page of parquet may hold 16 times as much, 4 times if it was
    packed to less than a tenth. Text files need no limit, since they are cut. Allowed: 1 to 1024."""
    split: str = "hash"
    """What is held out: hash (documents, by a hash of their text) or file (the last validation_files files). By hash,
    so that a document is held out whichever file it lies in. Allowed: hash, file."""
    validation_files: int = 1
    """Files that split=file holds out, the last in order of their names. Allowed: ≥ 1."""
    validation_path: str | None = None
    """Validation stream of source=bin. Null takes the last validation_fraction of the one stream. Allowed: a file,
    null."""
    vocab_size: int | None = None
    """Ids of a bare stream, where no tokenizer tells. Null leaves it to the tokenizer. Allowed: ≥ 1, null."""
    eos_id: int | None = None
    """Id that ends a text in a bare stream, where no tokenizer tells. Null leaves it to the tokenizer. Allowed: ≥ 0,
    null."""
    workers: int = 1
    """Processes that tokenize, a file each at a time; changes no result. One, since the default corpus is small.
    Allowed: ≥ 1."""

    @property
    def given_path(self) -> str:
        """`path`, of a source that needs one."""
        assert self.path is not None, self.source
        return self.path

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
        check(0 <= self.lossy <= 1, "data.lossy", self.lossy, "it must be from 0 to 1")
        check(1 <= self.longest_mib <= 1024, "data.longest_mib", self.longest_mib, "it must be from 1 to 1024")
        check(self.split in ("hash", "file"), "data.split", self.split, "allowed: hash, file")
        eos = self.eos
        is_id = is_whole(eos) and eos >= 0
        check(eos is None or isinstance(eos, str) or is_id, "data.eos", eos, "it must be a token, or an id ≥ 0")
        bos = self.bos
        given = bos is True or isinstance(bos, str) or (is_whole(bos) and bos >= 0)
        check(bos is None or given, "data.bos", bos, "it must be true, a token, an id ≥ 0, or null")
        check_least(self, "data", validation_files=1, workers=1, vocab_size=1, eos_id=0)
