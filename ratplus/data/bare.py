"""Bare token streams (`.bin`, ids only), such as the reference implementation reads: used in place, never copied."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from ratplus.config.data import DataSection
from ratplus.data.corpus import (
    DTYPES,
    CorpusError,
    Verified,
    check_ids,
    dtype_of,
    read_manifest,
    write_manifest,
)
from ratplus.data.tokenizer import Tokenizer, load_tokenizer
from ratplus.records.stand_ins import stand_in_file


def write_bare(data: DataSection, folder: Path) -> Path:
    """Describe bare streams in a corpus folder: a manifest that points to them where they lie.

    Validation is `data.validation_path`, or the last `data.validation_fraction` of the one stream.

    Raises:
        CorpusError: a file is missing, empty, no whole number of ids, or holds ids outside the vocabulary; or neither a
            tokenizer nor data.vocab_size and data.eos_id are given.
    """
    tokenizer = _tokenizer(data)
    facts = tokenizer if isinstance(tokenizer, dict) else tokenizer.facts
    dtype = dtype_of(facts["vocab_size"])
    verified = Verified(folder)
    train = _describe(Path(data.given_path), "data.path", dtype, facts, verified)
    splits = {"train": train}
    if data.validation_path is not None:
        path = Path(data.validation_path)
        splits["validation"] = _describe(path, "data.validation_path", dtype, facts, verified)
        rule = "two streams"
    else:
        held_out = int(train["tokens"] * data.validation_fraction)
        first = train["tokens"] - held_out
        if not 0 < held_out < train["tokens"]:
            raise CorpusError(
                f"data.path={data.path}: {train['tokens']} tokens cannot be parted by "
                f"data.validation_fraction={data.validation_fraction}; give data.validation_path"
            )
        splits = {
            "train": _part(train, dtype, facts, 0, first),
            "validation": _part(train, dtype, facts, first, held_out),
        }
        rule = f"the last {data.validation_fraction} of the stream is validation"
    folder.mkdir(parents=True, exist_ok=True)
    verified.save()
    return write_manifest(
        folder, source={"name": "bin"}, tokenizer=tokenizer, splits=splits, split_rule=rule, dtype=dtype
    )


def check_bare(data: DataSection, folder: Path) -> None:
    """Refuse a corpus folder that was made of other streams, or for another tokenizer, than `data` names now.

    Raises:
        CorpusError: which of them changed.
    """
    manifest = read_manifest(folder)
    tokenizer = _tokenizer(data)
    facts = tokenizer if isinstance(tokenizer, dict) else tokenizer.facts
    made_for = manifest["tokenizer"]
    if facts != made_for:
        raise CorpusError(
            f"{folder}: made for tokenizer {made_for['name']} ({made_for['vocab_size']} ids, end of text "
            f"{made_for['eos_id']}); asked for is {facts['name']} ({facts['vocab_size']}, {facts['eos_id']}); give "
            "that one, or delete the folder"
        )
    for facts in manifest["splits"].values():
        for part in facts.get("shards", [facts]):
            path = Path(part["file"])
            if path.exists() and path.stat().st_size != part["bytes"]:
                raise CorpusError(f"{path}: its size changed since {folder} was made; delete that folder")


def _tokenizer(data: DataSection) -> Tokenizer | dict:
    """A tokenizer, or what is known of one whose file nobody has."""
    if data.tokenizer is not None:
        tokenizer = load_tokenizer(data.tokenizer, data.eos, bos=data.bos)
        for key in ("vocab_size", "eos_id"):
            given, real = getattr(data, key), getattr(tokenizer, key)
            if given is not None and given != real:
                raise CorpusError(
                    f"data.{key}: got {given}, but data.tokenizer={data.tokenizer} has {real}; set it to null"
                )
        return tokenizer
    if data.vocab_size is None or data.eos_id is None:
        raise CorpusError(
            "data=bin: give the streams' data.tokenizer, or data.vocab_size and data.eos_id (LLaMA-2: 32000 and 2)"
        )
    if data.eos_id >= data.vocab_size:
        raise CorpusError(f"data.eos_id: got {data.eos_id}; it must be below data.vocab_size={data.vocab_size}")
    return {"name": f"unknown-{data.vocab_size}", "vocab_size": data.vocab_size, "eos_id": data.eos_id}


def _describe(path: Path, key: str, dtype: str, tokenizer: dict, verified: Verified) -> dict:
    width = np.dtype(DTYPES[dtype]).itemsize
    try:
        size = path.stat().st_size
    except OSError:
        raise CorpusError(f"{key}={path}: no such file") from None
    if what := stand_in_file(path):
        raise CorpusError(f"{key}={path}: this is {what}")
    if size == 0 or size % width:
        raise CorpusError(f"{key}={path}: {size} bytes are no stream of {dtype} ids")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stream = np.memmap(path, dtype=DTYPES[dtype], mode="r")
    check_ids(stream, tokenizer["vocab_size"], path)
    where = os.path.realpath(path)
    verified.add(where, sha256)
    documents = _count(stream, tokenizer["eos_id"])
    return {"file": where, "tokens": len(stream), "documents": documents, "bytes": size, "sha256": sha256}


def _part(whole: dict, dtype: str, tokenizer: dict, first: int, tokens: int) -> dict:
    """A stretch of a stream, as a split of one shard, whose hash is the file's; the split's says which stretch."""
    stream = np.memmap(whole["file"], dtype=DTYPES[dtype], mode="r")[first : first + tokens]
    shard = whole | {"first": first, "tokens": tokens, "documents": _count(stream, tokenizer["eos_id"])}
    name = hashlib.sha256(f"{whole['sha256']} {first} {tokens}".encode()).hexdigest()
    return {
        "shards": [shard],
        "tokens": tokens,
        "documents": shard["documents"],
        "bytes": stream.nbytes,
        "sha256": name,
    }


def _count(stream: np.ndarray, eos: int) -> int:
    step = 1 << 24
    return sum(int((stream[i : i + step] == eos).sum()) for i in range(0, len(stream), step))
