"""Starting from given weights instead of pretraining: does the folder of `model.init_from` fit the cell? Torch-free."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError, family_of, read_start
from ratplus.checkpoint.tokenizer_files import TOKENIZER_FILE, has_tokenizer, id_count, tokenizer_files
from ratplus.config.cell import Config
from ratplus.config.model import ModelConfig

# What a forward pass may be given anew: the length, and how positions are turned into angles.
_FREE = ("max_len", "rope")
# What a model without a recurrence may be given beside it (ratplus.checkpoint.retrofit).
_ADDED = ("recurrence", "gate_bias", "recurrence_chunk")
# Where the gates of a recurrence that is added start, unless a word says it: sigmoid(-2) = 0.12 leaves a model nearly
# as it was, and the gates can still learn (docs/models.md).
GATE_BIAS = -2.0


def adds_recurrence(found: ModelConfig, wanted: ModelConfig) -> bool:
    """Whether a cell's model is the folder's with a recurrence that the folder's has not."""
    return wanted.recurrence and not found.recurrence and wanted.gate_bias is not None


def weights_of(config: Config, text_vocab: int, vocab_size: int) -> tuple[str, int]:
    """SHA-256 of the weights of `model.init_from`, which must fit the config, and the rows of their embedding.

    Args:
        text_vocab: ids of the tokenizer.
        vocab_size: these and the symbols of the recall task.

    Raises:
        CheckpointError: no model folder, one of another shape or vocabulary, or a context that the model
            was not trained for.
    """
    folder = config.model.init_from
    assert folder is not None  # asked of configs that have one
    try:
        found, sha256 = read_start(Path(folder))
    except CheckpointError as error:
        raise CheckpointError(f"model.init_from: {error}") from None
    _check_vocabulary(Path(folder), found.vocab_size, config, text_vocab, vocab_size)
    shape = config.model.build(found.vocab_size, config.train.context)
    free = _FREE + _ADDED if adds_recurrence(found, shape) else _FREE
    there, wanted = asdict(found), asdict(shape)
    differing = [k for k in there if there[k] != wanted[k] and not k.startswith(free)]
    if differing == ["recurrence"] and shape.recurrence:
        raise CheckpointError(
            f"model.recurrence=true: the model of model.init_from={folder} has none, and gates without a bias would "
            f"start half open and ruin it; give the bias at which they start, such as model.gate_bias={GATE_BIAS:g}"
        )
    if differing:
        told = ", ".join(f"model.{k}={there[k]} (not {wanted[k]})" for k in differing)
        raise CheckpointError(
            f"model.init_from={folder}: the model there has another shape; it needs {told}; or leave out model=..., "
            "and the shape is the folder's"
        )
    _check_context(Path(folder), found, config)
    return sha256, found.vocab_size


def vocabulary_of(folder: Path) -> int | None:
    """Ids of the texts that an imported model reads: its tokenizer's, or, without one, the rows of its embedding.

    None for a folder that is no imported model's: what else its rows stand for is not told there.
    """
    if family_of(folder) is None:
        return None
    ids = _ids_of(folder)
    return read_start(folder)[0].vocab_size if ids is None else ids


def _ids_of(folder: Path) -> int | None:
    """Ids of the tokenizer.json in a folder; None without one."""
    return _ids_as_of(folder, (folder / TOKENIZER_FILE).stat().st_mtime_ns if has_tokenizer(folder) else 0)


@lru_cache(maxsize=16)  # a sweep asks for every cell, and a tokenizer may take a second to read
def _ids_as_of(folder: Path, _changed: int) -> int | None:
    return id_count(tokenizer_files(folder), folder)


def _check_context(folder: Path, found: ModelConfig, config: Config) -> None:
    """Refuse a context that an imported model was not trained for, unless RoPE scaling is asked for."""
    context, most = config.train.context, found.max_len
    scaled = config.model.rope_scaling != found.rope_scaling or config.model.rope_factor != found.rope_factor
    if context > most and not scaled and family_of(folder) is not None:
        raise CheckpointError(
            f"train.context={context}: model.init_from={folder} takes at most {most} tokens; use fewer, or ask for "
            f"RoPE scaling: model.rope_scaling=yarn model.rope_factor={context / most:g} model.rope_original={most}"
        )


def _check_vocabulary(folder: Path, rows: int, config: Config, text_vocab: int, vocab_size: int) -> None:
    """Refuse data of another vocabulary. An imported model may have more rows than its tokenizer has ids: they pad."""
    if vocab_size == rows:
        return
    ids, hint = None, "use the data.tokenizer that it was trained with"
    if family_of(folder) is not None:
        ids = _ids_of(folder)
        if ids is not None:
            hint = f"use data.tokenizer={folder}"
        fits = text_vocab == ids if ids is not None else config.data.tokenizer not in (None, "bytes")
        if fits and vocab_size <= rows:
            return
    recall = "; data.recall.fraction=0 leaves out the recall task's symbols" if config.data.recall.fraction else ""
    of_tokenizer = "" if ids is None or ids == rows else f" (its tokenizer {ids} ids)"
    raise CheckpointError(
        f"model.init_from={folder}: the model has a vocabulary of {rows}{of_tokenizer}, the data one of {vocab_size}; "
        f"{hint}{recall}"
    )
