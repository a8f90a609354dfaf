"""The tokenizer inside a GGUF file, as the files that a Hugging Face folder has. Torch-free.

Built are the byte-level BPE tokenizers whose way to cut a text into words is named here; of other models the weights
are imported without a tokenizer, and `data.tokenizer` names one.
"""

from __future__ import annotations

import json
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError
from ratplus.pattern import is_whole
from ratplus.records.lines import plain

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# By tokenizer.ggml.pre: what cuts a text before the merges.
_CUTS = {
    "gpt-2": _BYTES,
    "default": _BYTES,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]},
}
_CONTROL, _USER = 3, 4  # kinds of tokens that stand for themselves, rather than for a piece of text


def files_of(facts: dict, path: Path) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a file's metadata; {} where none can be built.

    Raises:
        CheckpointError: tokens, kinds and merges that do not fit each other.
    """
    files: dict[str, bytes] = {}
    if isinstance(template := facts.get("tokenizer.chat_template"), str):
        files["chat_template.jinja"] = template.encode()
    tokens, merges = (_texts(facts, f"tokenizer.ggml.{key}", path) for key in ("tokens", "merges"))
    cut = _CUTS.get(str(facts.get("tokenizer.ggml.pre") or "default"))
    if facts.get("tokenizer.ggml.model") != "gpt2" or cut is None or not tokens or merges is None:
        return files
    kinds = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        told = f"{len(kinds)} tokens" if isinstance(kinds, list) else "no list of tokens"
        raise CheckpointError(f"{path}: tokenizer.ggml.token_type tells of {told}, there are {len(tokens)}")
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (_CONTROL, _USER)
    ]  # fmt: skip
    places = {key: facts.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    marks = {key: tokens[i] for key, i in places.items() if is_whole(i) and 0 <= i < len(tokens)}
    begin = []
    if facts.get("tokenizer.ggml.add_bos_token") and places["bos"] is not None:
        if "bos" not in marks:
            raise CheckpointError(
                f"{path}: tokenizer.ggml.bos_token_id is {plain(repr(places['bos'])[:100])}, and there are "
                f"{len(tokens)} tokens"
            )
        begin = [marks["bos"]]
    files["tokenizer.json"] = json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": cut, "post_processor": _before(begin, tokens),
            "decoder": {**_BYTES, "add_prefix_space": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in merges],
            },
        },
        ensure_ascii=False,
    ).encode()  # fmt: skip
    words = {"tokenizer_class": "PreTrainedTokenizerFast"}
    words |= {f"{key}_token": token for key, token in marks.items()}
    files["tokenizer_config.json"] = json.dumps(words, ensure_ascii=False, indent=1).encode()
    return files


def _texts(facts: dict, name: str, path: Path) -> list[str] | None:
    """A list of texts of the metadata; None if it is not there."""
    found = facts.get(name)
    if found is not None and not (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        raise CheckpointError(f"{path}: {name} is no list of texts")
    return found


def _before(begin: list[str], tokens: list[str]) -> dict | None:
    """What puts `begin` before every text, if there is such a token."""
    if not begin:
        return None
    single = [{"SpecialToken": {"id": begin[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": begin[0], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {begin[0]: {"id": begin[0], "ids": [tokens.index(begin[0])], "tokens": begin}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
