"""A corpus on disk: two token streams (train, validation) and a manifest that says what they are.

Layout of a corpus folder: flat little-endian ids (uint16, or uint32 for more than 65,536 ids), documents separated by
end-of-text, each split in one file or in several that are read as one; `manifest.json` with source, tokenizer, counts,
dtype, SHA-256 and the split rule; the tokenizer's own file, if it has one. The manifest is written last, so a folder
with one is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ratplus.data.stream import ShardedStream, join
from ratplus.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from ratplus.pattern import is_whole
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import read_json
from ratplus.records.stand_ins import stand_in_file

FORMAT = 1
MANIFEST_FILE = "manifest.json"
VERIFIED_FILE = "verified.json"
SPLITS = ("train", "validation")
DTYPES = {"uint8": "u1", "uint16": "<u2", "uint32": "<u4"}
# Files from this size on are hashed once, and again only when their size or time of change is another.
HASHED_ONCE_BYTES = 64 << 20
_REDO = "delete the folder and run `ratplus prepare`"


class CorpusError(ValueError):
    """A corpus is missing, truncated, altered, or does not fit the tokenizer."""


@dataclass
class Corpus:
    """An opened corpus; `train` and `validation` are memory-mapped ids: `len(stream)` and `stream[a:b]`."""

    folder: Path
    manifest: dict
    train: np.ndarray | ShardedStream
    validation: np.ndarray | ShardedStream
    _tokenizer: Tokenizer | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def eos_id(self) -> int:
        return self.manifest["tokenizer"]["eos_id"]

    @property
    def identity(self) -> dict:
        """What enters a stage's id: the streams' content and how it was tokenized, not where it lies."""
        return {
            "tokenizer": self.manifest["tokenizer"]["name"],
            "sha256": {split: self.manifest["splits"][split]["sha256"] for split in SPLITS},
        }

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the streams: encode(text), decode(ids), eos_id, vocab_size. It is loaded once.

        Raises:
            CorpusError: its file is missing or altered, or nobody has said which it is (bare .bin streams).
            TokenizerError: its library is not installed.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    def _load_tokenizer(self) -> Tokenizer:
        facts = self.manifest["tokenizer"]
        if facts["name"] == ByteTokenizer.name:
            return ByteTokenizer()
        if "file" not in facts:
            raise CorpusError(
                f"{self.folder}: the tokenizer of these streams is not known; name its file with data.tokenizer=..."
            )
        path = _below(self.folder, facts["file"])
        tokenizer = load_tokenizer(path, facts["eos_id"], bos=facts.get("bos_id"))
        if tokenizer.facts.get("sha256") != facts.get("sha256", ""):
            raise CorpusError(f"{path}: SHA-256 differs from the manifest: the file was altered; {_REDO}")
        return tokenizer


def held_out(key: bytes, fraction: float) -> bool:
    """Whether the document of this key belongs to validation: by a hash, so that order and company don't matter."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < fraction * 2**64


def dtype_of(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_corpus(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    *,
    source: dict,
    validation_fraction: float,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Tokenize (name, text) documents into a corpus folder, in memory: for megabytes.

    A document goes to validation if the hash of its name falls below `validation_fraction`: the split depends on
    nothing but the document itself.

    Raises:
        CorpusError: no documents, or a split that stayed empty.
    """
    tokenizer = tokenizer or ByteTokenizer()
    dtype = dtype_of(tokenizer.vocab_size)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    eos = np.array([tokenizer.eos_id], dtype=dtype)
    for name, text in documents:
        split = "validation" if held_out(name.encode(), validation_fraction) else "train"
        parts[split] += [*tokenizer.encode_batch([text]), eos]
    for split, pieces in parts.items():
        if not pieces:
            raise CorpusError(f"{folder}: {empty_split(split, validation_fraction)}")
    splits = {}
    for split, pieces in parts.items():
        ids = np.concatenate(pieces)
        check_ids(ids, tokenizer.vocab_size, f"{folder}: {split}")
        data = ids.astype(DTYPES[dtype]).tobytes()
        write_atomically(Path(folder) / f"{split}.bin", data)
        splits[split] = {
            "file": f"{split}.bin",
            "tokens": len(ids),
            "documents": len(pieces) // 2,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    rule = f"blake2b-64 of the document's name < {validation_fraction} * 2^64 goes to validation"
    return write_manifest(folder, source=source, tokenizer=tokenizer, splits=splits, split_rule=rule)


def empty_split(split: str, validation_fraction: float) -> str:
    """What to say of a split that got no document."""
    return (
        f"no document fell into the {split} split; give more documents or another "
        f"data.validation_fraction (now {validation_fraction})"
    )


def write_manifest(
    folder: Path, *, source: dict, tokenizer: Tokenizer | dict, splits: dict, split_rule: str, dtype: str | None = None
) -> Path:
    """Write the tokenizer's file (if `tokenizer` is one that has it), then the manifest, which makes a corpus whole."""
    folder = Path(folder)
    facts = tokenizer if isinstance(tokenizer, dict) else tokenizer.facts
    if not isinstance(tokenizer, dict) and tokenizer.file is not None:
        write_atomically(folder / facts["file"], tokenizer.file.read_bytes())
    manifest = {
        "format": FORMAT,
        "source": source,
        "tokenizer": facts,
        "dtype": dtype or dtype_of(facts["vocab_size"]),
        "split_rule": split_rule,
        "splits": splits,
    }
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return folder


def read_manifest(folder: Path) -> dict:
    """The manifest of a corpus folder.

    Raises:
        CorpusError: there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        if manifest.get("format", FORMAT) != FORMAT:
            raise CorpusError(f"{path}: format {manifest['format']!r}; this version reads format {FORMAT}")
        manifest["source"], manifest["tokenizer"]["vocab_size"], DTYPES[manifest["dtype"]]
        if problem := _misshapen(manifest):
            raise TypeError(problem)
    except FileNotFoundError:
        raise CorpusError(f"{folder}: no corpus here ({MANIFEST_FILE} is missing); run `ratplus prepare`") from None
    except CorpusError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: damaged ({error}); delete the folder and run `ratplus prepare`") from None
    return manifest


def _misshapen(manifest: dict) -> str:
    """What in a manifest is not as `write_manifest` has it; empty if all is."""
    facts = manifest["tokenizer"]
    if not (_is_count(facts["vocab_size"]) and facts["vocab_size"] <= 1 << 32 and _is_count(facts["eos_id"])):
        return "tokenizer: vocab_size and eos_id are no ids of 32 bits"
    if facts.get("bos_id") is not None and not _is_count(facts["bos_id"]):
        return "tokenizer: bos_id is no id of 32 bits"
    if not isinstance(facts["name"], str) or not isinstance(facts.get("file", ""), str):
        return "tokenizer: name and file are no texts"
    for split in SPLITS:
        facts = manifest["splits"][split]
        if not all(_is_count(facts[key]) for key in ("tokens", "documents", "bytes")):
            return f"splits.{split}: tokens, documents and bytes are whole numbers"
        for part in [*facts.get("shards", [facts]), {"file": "", "bytes": 0, "tokens": 0, "sha256": facts["sha256"]}]:
            texts, counts = (part["file"], part["sha256"]), (part["bytes"], part["tokens"], part.get("first", 0))
            if not all(isinstance(text, str) for text in texts) or not all(map(_is_count, counts)):
                return f"splits.{split}: file and sha256 are texts, bytes and tokens whole numbers"
    return ""


def _is_count(value: object) -> bool:
    return is_whole(value) and value >= 0


def _below(folder: Path, name: str, elsewhere: bool = False) -> Path:
    """A file that a manifest names. A stranger's may name any file of this machine, which we would then read.

    Raises:
        CorpusError: it lies elsewhere, also by a link, or is no plain file.
    """
    path = folder / name
    if not elsewhere and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise CorpusError(f"{path}: lies outside the corpus folder; put the file itself there")
    if not path.is_file():
        raise CorpusError(f"{path}: file is missing; {_REDO}")
    return path


def open_corpus(folder: str | Path, elsewhere: bool = False) -> Corpus:
    """Open a corpus and check it against its manifest: sizes, SHA-256, and that every id is in the vocabulary.

    Big files are hashed only when they changed since they were last found whole.

    Args:
        elsewhere: whether its token files may lie outside of it, as those of `data=bin` do.

    Raises:
        CorpusError: a file is missing, truncated or altered, or holds an id outside the vocabulary.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    vocab, dtype = manifest["tokenizer"]["vocab_size"], DTYPES[manifest["dtype"]]
    verified = Verified(folder)
    streams = {}
    for split in SPLITS:
        facts = manifest["splits"][split]
        parts = [
            _open_part(part, _below(folder, part["file"], elsewhere), dtype, vocab, verified)
            for part in facts.get("shards", [facts])
        ]
        streams[split] = join(parts)
    verified.save()
    return Corpus(folder, manifest, streams["train"], streams["validation"])


def _open_part(facts: dict, path: Path, dtype: str, vocab: int, verified: Verified) -> np.ndarray:
    size = path.stat().st_size
    if size != facts["bytes"] and (what := stand_in_file(path)):
        raise CorpusError(f"{path}: this is {what}")
    if size != facts["bytes"]:
        raise CorpusError(f"{path}: holds {size} bytes, the manifest says {facts['bytes']}: truncated? {_REDO}")
    stream = np.memmap(path, dtype=dtype, mode="r")
    if not verified.knows(facts["file"], facts["sha256"]):
        if hashlib.sha256(stream.data).hexdigest() != facts["sha256"]:
            raise CorpusError(f"{path}: SHA-256 differs from the manifest: the file was altered; {_REDO}")
        check_ids(stream, vocab, path)
        verified.add(facts["file"], facts["sha256"])
    first = facts.get("first", 0)
    return stream[first : first + facts["tokens"]]


class Verified:
    """Which big files of a corpus were found whole: `verified.json`, {file: [bytes, time of change, SHA-256]}."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            found = read_json(self.folder / VERIFIED_FILE)
        except (OSError, ValueError):
            found = {}
        self._found = found if isinstance(found, dict) else {}
        self._now: set[str] = set()
        self._changed = False

    def knows(self, file: str, sha256: str) -> bool:
        # Train and validation may lie in one file.
        return file in self._now or self._known(file, sha256)

    def _known(self, file: str, sha256: str) -> bool:
        stamp = self._stamp(file, sha256)
        return stamp is not None and self._found.get(file) == stamp

    def add(self, file: str, sha256: str) -> None:
        self._now.add(file)
        stamp = self._stamp(file, sha256)
        if stamp is not None:
            self._found[file] = stamp
            self._changed = True

    def save(self) -> None:
        if self._changed:
            # A corpus that can only be read here is hashed again next time.
            with suppress(OSError):
                write_atomically(self.folder / VERIFIED_FILE, json.dumps(self._found, indent=1) + "\n")

    def _stamp(self, file: str, sha256: str) -> list | None:
        """None for a file that is small enough to be hashed every time."""
        stat = (self.folder / file).stat()
        return [stat.st_size, stat.st_mtime_ns, sha256] if stat.st_size >= HASHED_ONCE_BYTES else None


def check_ids(stream: np.ndarray, vocab: int, where) -> None:
    """Raise CorpusError at the first id that is not below `vocab`."""
    step = 1 << 24
    for first in range(0, len(stream), step):
        block = stream[first : first + step]
        if len(block) and int(block.max()) >= vocab:
            index = int(np.argmax(block >= vocab))
            raise CorpusError(
                f"{where}: token {first + index} has id {int(block[index])}, but the vocabulary has {vocab} ids: "
                "wrong tokenizer or wrong dtype"
            )
