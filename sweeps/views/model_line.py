"""One line about a model that was imported or exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ratplus.checkpoint.tokenizer_files import SENTENCEPIECE_FILE, TOKENIZER_FILE, begins_texts
from ratplus.config.mixer import TITLES
from ratplus.config.model import ModelConfig
from ratplus.costs.budget import parameters as parameters_of


def model_line(place: Path, config: ModelConfig, parameters: int | None = None, size: str | None = None) -> str:
    """Where a model lies, its shape and its size.

    Args:
        place: the file or folder that holds the model.
        parameters: how many it has; counted from `config` if None.
        size: name of the paper's model with this shape, such as 1B, if there is one.
    """
    kind = "RAT+" if config.recurrence else "attention without recurrence"
    if not config.attends:
        kind = f"{TITLES[config.mixer]} with a state of {config.state_shape.d_state} x {config.d_head} a head"
    keys = "" if config.kv_heads is None else f" on {config.kv_heads} of keys"
    return (
        f"{place}: {f'the {size} shape of the paper, ' if size else ''}{kind}, {config.layers} layers, d_model "
        f"{config.d_model}, {config.heads} heads of {config.d_head}{keys}, vocabulary {config.vocab_size}: "
        f"{parameters or parameters_of(config)} parameters, recurrence {'on' if config.recurrence else 'off'}"
    )


def tokenizer_words(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """The overrides with which a model's data is prepared with the tokenizer in its folder; none without one."""
    if TOKENIZER_FILE not in files and SENTENCEPIECE_FILE not in files:
        return []
    bos = ["data.bos=true"] if begins_texts(files) else []
    return [f"data.tokenizer={folder}", *bos, "data.recall.fraction=0"]
