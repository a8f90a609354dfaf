"""A tokenizer's files as transformers wants them: what a model has, and what it lacks. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ratplus.checkpoint.facts import CONFIG_FILE, CheckpointError
from ratplus.checkpoint.tokenizer_files import SENTENCEPIECE_FILE, TOKENIZER_FILE, begins_texts
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.records.reading import parse_json

_END = "<|endoftext|>"
_CONFIG, _GENERATION = "tokenizer_config.json", "generation_config.json"


def files_for_others(files: Mapping[str, bytes], facts: dict | None) -> tuple[dict[str, bytes], list[str]]:
    """Files that AutoTokenizer and `generate` read, and what whoever exports should know of them.

    Args:
        files: of the model folder, by name; what is there stays as it is.
        facts: of the model's tokenizer (`Tokenizer.facts`), if the folder tells them.

    Raises:
        CheckpointError: facts that name a token which tokenizer.json has not.
    """
    files, notes = dict(files), []
    if facts is not None and facts.get("name") == ByteTokenizer.name:
        files[TOKENIZER_FILE] = byte_tokenizer()
    if TOKENIZER_FILE not in files:
        if SENTENCEPIECE_FILE in files:
            notes.append(f"{SENTENCEPIECE_FILE} (SentencePiece) lies there as it is; no tokenizer.json was made of it")
        else:
            notes.append("it has no tokenizer: the model folder holds none")
        return files, notes
    ids = token_ids(files[TOKENIZER_FILE])
    said = _said(files.get(_CONFIG))
    known = facts or {}
    eos = known.get("eos_id", ids.get(_content(said.get("eos_token"))))
    bos = known.get("bos_id", ids.get(_content(said.get("bos_token"))))
    names = {i: token for token, i in ids.items()}
    if _CONFIG not in files:
        if (missing := next((i for i in (eos, bos) if i is not None and i not in names), None)) is not None:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: has no token of the id {missing}, which {CONFIG_FILE} names as its end or begin of "
                "text; restore the one that the model was trained with"
            )
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if eos is not None:
            # Batches of prompts are padded on the left, with what the mask hides.
            words |= {"eos_token": names[eos], "pad_token": names[eos], "padding_side": "left"}
        if bos is not None:
            words["bos_token"] = names[bos]
        files[_CONFIG] = _text(words)
    if _GENERATION not in files:
        told = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
        files[_GENERATION] = _text({key: value for key, value in told.items() if value is not None})
    if facts is not None and begins_texts(files) != (facts.get("bos_id") is not None):
        does = "puts a token before every text" if begins_texts(files) else "puts no token before a text"
        notes.append(f"its {TOKENIZER_FILE} {does}, other than the data that the model was trained with (data.bos)")
    return files, notes


def token_words(files: Mapping[str, bytes]) -> dict:
    """The ids that config.json repeats from generation_config.json, for readers that look there alone."""
    said = _said(files.get(_GENERATION))
    return {key: said[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if said.get(key) is not None}


def token_ids(tokenizer: bytes) -> dict[str, int]:
    """Ids of the tokens of a tokenizer.json, added ones included; {} for a damaged file."""
    try:
        whole = parse_json(tokenizer)
        vocabulary = whole["model"]["vocab"]
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {row[0]: i for i, row in enumerate(vocabulary)}
        return ids | {token["content"]: int(token["id"]) for token in whole.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def byte_tokenizer() -> bytes:
    """`ByteTokenizer` as a tokenizer.json: the ids are the bytes, and 256 ends a text.

    A byte-level BPE without merges, whose 256 letters stand for the bytes as in GPT-2: printable ones for themselves,
    the others for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    end = {"id": 256, "content": _END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
           "special": True}  # fmt: skip
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}  # fmt: skip
    return _text({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
                  "pre_tokenizer": cut, "post_processor": None, "decoder": cut, "model": model})  # fmt: skip


def _said(config: bytes | None) -> dict:
    try:
        said = parse_json(config) if config is not None else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _content(token: object) -> str:
    """The text of a token, which tokenizer_config.json holds as it is or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _text(words: dict) -> bytes:
    return (json.dumps(words, ensure_ascii=False, indent=1) + "\n").encode()
