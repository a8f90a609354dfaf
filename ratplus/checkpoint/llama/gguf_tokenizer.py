"""The tokenizer inside a GGUF file, as the files that a Hugging Face folder has. Torch-free.

Built are the byte-level BPE tokenizers whose way to cut a text into words is named here; of other models the weights
are imported without a tokenizer, and `data.tokenizer` names one.
"""

from __future__ import annotations

import json
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError

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
    tokens, merges = facts.get("tokenizer.ggml.tokens"), facts.get("tokenizer.ggml.merges")
    cut = _CUTS.get(facts.get("tokenizer.ggml.pre") or "default")
    if facts.get("tokenizer.ggml.model") != "gpt2" or cut is None or not tokens or merges is None:
        return files
    kinds = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.token_type tells of {len(kinds)} tokens, there are {len(tokens)}"
        )
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (_CONTROL, _USER)
    ]  # fmt: skip
    begin = []
    if facts.get("tokenizer.ggml.add_bos_token") and (bos := facts.get("tokenizer.ggml.bos_token_id")) is not None:
        begin = [tokens[int(bos)]]
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
    for key in ("bos", "eos"):
        if (i := facts.get(f"tokenizer.ggml.{key}_token_id")) is not None and int(i) < len(tokens):
            words[f"{key}_token"] = tokens[int(i)]
    files["tokenizer_config.json"] = json.dumps(words, ensure_ascii=False, indent=1).encode()
    return files


def _before(begin: list[str], tokens: list[str]) -> dict | None:
    """What puts `begin` before every text, if there is such a token."""
    if not begin:
        return None
    single = [{"SpecialToken": {"id": begin[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": begin[0], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {begin[0]: {"id": begin[0], "ids": [tokens.index(begin[0])], "tokens": begin}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
