"""A corpus on disk: two token streams (train, validation) and a manifest that says what they are.

Layout of a corpus folder: `train.bin` and `validation.bin`, flat little-endian uint16 (or uint8) ids, documents
separated by end-of-text; `manifest.json` with source, tokenizer, counts, dtype, SHA-256 and the split rule. The
manifest is written last, so a folder with one is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ratplus.data.tokenizer import ByteTokenizer
from ratplus.record import write_atomically

FORMAT = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "validation")


class CorpusError(ValueError):
    """A corpus is missing, truncated, altered, or does not fit the tokenizer."""


@dataclass
class Corpus:
    """An opened corpus; `train` and `validation` are memory-mapped id arrays."""

    folder: Path
    manifest: dict
    train: np.ndarray
    validation: np.ndarray

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


def write_corpus(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    *,
    source: dict,
    validation_fraction: float,
    tokenizer: ByteTokenizer | None = None,
) -> Path:
    """Tokenize (name, text) documents into a corpus folder.

    A document goes to validation if the hash of its name falls below `validation_fraction`: the split depends on
    nothing but the document itself.

    Raises:
        CorpusError: no documents, or a split that stayed empty.
    """
    tokenizer = tokenizer or ByteTokenizer()
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    eos = np.array([tokenizer.eos_id], dtype=np.uint16)
    for name, text in documents:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest, "big") < validation_fraction * 2**64
        parts["validation" if held_out else "train"] += [tokenizer.encode_array(text), eos]
    for split, pieces in parts.items():
        if not pieces:
            raise CorpusError(
                f"{folder}: no document fell into the {split} split; give more documents or another "
                f"data.validation_fraction (now {validation_fraction})"
            )
    splits = {}
    for split, pieces in parts.items():
        ids = np.concatenate(pieces).astype("<u2")
        data = ids.tobytes()
        write_atomically(Path(folder) / f"{split}.bin", data)
        splits[split] = {
            "file": f"{split}.bin",
            "tokens": len(ids),
            "documents": len(pieces) // 2,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    manifest = {
        "format": FORMAT,
        "source": source,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id},
        "dtype": "uint16",
        "split_rule": f"blake2b-64 of the document's name < {validation_fraction} * 2^64 goes to validation",
        "splits": splits,
    }
    write_atomically(Path(folder) / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return Path(folder)


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus and check it against its manifest: sizes, SHA-256, and that every id is in the vocabulary.

    Raises:
        CorpusError: a file is missing, truncated or altered, or holds an id outside the vocabulary.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        vocab = manifest["tokenizer"]["vocab_size"]
        dtype = {"uint16": "<u2", "uint8": "u1"}[manifest["dtype"]]
        splits = {split: manifest["splits"][split] for split in SPLITS}
    except FileNotFoundError:
        raise CorpusError(f"{folder}: no corpus here ({MANIFEST_FILE} is missing); run `ratplus prepare`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: damaged ({error}); delete the folder and run `ratplus prepare`") from None
    streams = {split: _open_stream(folder, facts, dtype, vocab) for split, facts in splits.items()}
    return Corpus(folder, manifest, streams["train"], streams["validation"])


def _open_stream(folder: Path, facts: dict, dtype: str, vocab: int) -> np.ndarray:
    path = folder / facts["file"]
    redo = "delete the folder and run `ratplus prepare`"
    try:
        size = path.stat().st_size
    except OSError:
        raise CorpusError(f"{path}: token file is missing; {redo}") from None
    if size != facts["bytes"]:
        raise CorpusError(f"{path}: holds {size} bytes, the manifest says {facts['bytes']}: truncated? {redo}")
    stream = np.memmap(path, dtype=dtype, mode="r")
    if hashlib.sha256(stream).hexdigest() != facts["sha256"]:
        raise CorpusError(f"{path}: SHA-256 differs from the manifest: the file was altered; {redo}")
    check_ids(stream, vocab, path)
    return stream


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
