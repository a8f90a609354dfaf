"""The tokenizer of a model folder: loaded from its files, and taken along where a stage starts from the model."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ratplus.checkpoint.facts import CONFIG_FILE, CheckpointError, tokenizer_facts
from ratplus.checkpoint.tokenizer_files import NAMES, SENTENCEPIECE_FILE, TOKENIZER_FILE
from ratplus.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from ratplus.records.atomic import new_file
from ratplus.records.reading import open_plain


def own_tokenizer(folder: Path, facts: dict | None = None) -> Tokenizer | None:
    """The tokenizer that lies in a folder, or that its config.json names; None if neither says which it is.

    Args:
        facts: what is known of it; None takes what config.json says.

    Raises:
        CheckpointError: config.json tells of a file that is missing, or of another one than lies there.
        TokenizerError: a damaged file, or its library is not installed.
    """
    facts = tokenizer_facts(folder) if facts is None else facts
    if facts is None:
        if not any((folder / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE)):
            return None
        tokenizer = load_tokenizer(folder)
        if not isinstance(tokenizer, ByteTokenizer):
            tokenizer.bos_id = tokenizer.own_bos()  # as the model was trained
        return tokenizer
    if facts.get("name") == ByteTokenizer.name:
        return ByteTokenizer()
    name = facts.get("file")
    if name is None:  # bare streams of ids, of which nobody has said what made them
        return None
    path = folder / name
    # The name may be a stranger's: no other file of this machine is read.
    if name not in (TOKENIZER_FILE, SENTENCEPIECE_FILE) or not path.is_file():
        raise CheckpointError(
            f"{path}: the model's tokenizer is missing, which {CONFIG_FILE} tells of; put it there, or give tokenizer="
        )
    tokenizer = load_tokenizer(path, facts.get("eos_id"), bos=facts.get("bos_id"))
    if tokenizer.facts.get("sha256") != facts.get("sha256"):
        raise CheckpointError(f"{path}: is not the tokenizer that {CONFIG_FILE} tells of; put that there")
    return tokenizer


def carry(sources: Iterable[Path], folder: Path, facts: dict | None) -> None:
    """Put the files of a tokenizer beside a model: links where the disk allows it, so that no cell costs disk for them.

    Args:
        sources: folders that may hold them; the first one that has the tokenizer of `facts` gives all of its files.
        folder: of the model; files of another tokenizer there go.
        facts: of the tokenizer; None takes the files of the first source as they are.

    Raises:
        CheckpointError: no source holds that tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
    name = None if facts is None else facts.get("file")
    if facts is not None and name is None:
        return
    sources = list(sources)
    for source in sources:
        if facts is None or _is_file_of(source / str(name), facts):
            for file in NAMES:
                if (source / file).is_file():
                    link_or_copy(source / file, folder / file)
            return
    raise CheckpointError(f"{sources[-1]}: its tokenizer's file {name} is missing or was altered; restore it")


def _is_file_of(path: Path, facts: dict) -> bool:
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == facts.get("sha256")
    except (OSError, ValueError):
        return False


def link_or_copy(path: Path, target: Path) -> None:
    """A hard link to a file, or a copy of it where there can be none: another disk, or one without links."""
    try:
        # Of the file itself: a folder of the hub's cache holds symbolic links.
        os.link(os.path.realpath(path), target)
    except OSError:
        with path.open("rb") as whole, new_file(target) as copy:
            shutil.copyfileobj(whole, copy, 16 << 20)
