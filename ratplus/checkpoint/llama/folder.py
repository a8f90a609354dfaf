"""A Hugging Face folder of a Llama, Mistral, Qwen2 or Qwen3 model: shape, weights, tokenizer, default pattern."""

from __future__ import annotations

from pathlib import Path

from ratplus.checkpoint.facts import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from ratplus.checkpoint.llama.weights import translate
from ratplus.checkpoint.llama.words import ADAPTER_FILE, read_llama
from ratplus.checkpoint.official import Checkpoint
from ratplus.checkpoint.shards import list_shards
from ratplus.checkpoint.tokenizer_files import check_ids, tokenizer_files
from ratplus.records.reading import read_json

_PICKLES = ("pytorch_model*.bin", "consolidated*.pth", "*.pt")


def read_llama_folder(folder: Path, max_len: int | None = None) -> Checkpoint:
    """A folder as transformers writes it, understood and checked; weights are read when they are used.

    Args:
        max_len: longest sequence of the model; None takes what its config.json says.

    Raises:
        CheckpointError: one line that names the file, the word or the tensor that is missing, damaged or not built.
    """
    words = _read_words(folder)
    found = read_llama(words, str(folder / CONFIG_FILE), max_len)
    try:
        stored = list_shards(folder)
    except FileNotFoundError:
        pickles = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
        what = f"{WEIGHTS_FILE} is missing"
        if pickles:
            what += f"; {pickles[0]} is a pickle, which may run code: save the model again with safetensors"
        raise CheckpointError(f"{folder}: no weights here ({what})") from None
    files = tokenizer_files(folder)
    check_ids(files, found.config.vocab_size, folder)
    return Checkpoint(found.config, translate(stored, found.config, str(folder)), found.patterns, files, found.family)


def _read_words(folder: Path) -> dict:
    path = folder / CONFIG_FILE
    try:
        words = read_json(path)
    except FileNotFoundError:
        if (folder / ADAPTER_FILE).exists():
            raise CheckpointError(f"{folder}: {_base_of(folder)}") from None
        raise CheckpointError(f"{folder}: no model here ({CONFIG_FILE} is missing)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    if not isinstance(words, dict):
        raise CheckpointError(f"{path}: damaged (it holds no keys and values)")
    if (folder / ADAPTER_FILE).exists():
        raise CheckpointError(f"{folder}: {_base_of(folder)}")
    return words


def _base_of(folder: Path) -> str:
    try:
        base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"holds a LoRA adapter ({ADAPTER_FILE}) of {base or 'a model that it does not name'}; merge it into that model "
        "first (peft: model.merge_and_unload(), then save_pretrained) and import the result"
    )
