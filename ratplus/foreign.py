"""Models in the formats of others: the reference layout and folders in the style of the Hugging Face hub, both ways."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ratplus.atomic import new_file, write_atomically
from ratplus.checkpoint import map_weights
from ratplus.config import ModelConfig
from ratplus.official import (
    EMBED,
    HEAD,
    LAYER_KEYS,
    LAYER_PREFIX,
    NORM,
    Checkpoint,
    check_numbers,
    float32,
    read_official,
    shapes_of,
)
from ratplus.starting_point import CONFIG_FILE, WEIGHTS_FILE
from ratplus.weights import CheckpointError, check_shapes, map_safetensors, write_safetensors


def read_foreign(path: str | Path, d_head: int = 128, max_len: int = 4096) -> Checkpoint:
    """A reference file, or a folder that `export_hf` wrote (which knows its own d_head and length).

    Raises:
        CheckpointError: neither, or not whole.
    """
    path = Path(path)
    return _read_hf(path) if path.is_dir() else read_official(path, d_head, max_len)


def export_official(folder: str | Path, target: str | Path) -> ModelConfig:
    """Write a model folder's weights in the reference layout, float32 under "task"; they are mapped, not loaded.

    Raises:
        CheckpointError: no model folder, or a model that the layout has no place for.
    """
    config, weights = map_weights(folder)
    default = ModelConfig(config.vocab_size, config.layers, config.d_model, config.d_head)
    for key in ("output_gate", "rope_base", "norm_eps"):
        if getattr(config, key) != getattr(default, key):
            raise CheckpointError(
                f"{folder}: the reference layout has no place for model.{key}={getattr(config, key)} "
                f"(always {getattr(default, key)}); use --format hf"
            )
    names = {f"layers.{i}.{own}": f"{LAYER_PREFIX}{i}.{key}" for i in range(config.layers)
             for key, own in LAYER_KEYS.items()}  # fmt: skip
    names |= {"embed.weight": EMBED, "norm.weight": NORM}
    state = {names[name]: tensor for name, tensor in weights.items()}
    state[HEAD] = state[EMBED]
    with new_file(target) as file:
        torch.save({"task": state}, file)
    return config


_HF_KEYS = {
    "vocab_size": "vocab_size", "layers": "num_hidden_layers", "d_model": "hidden_size", "d_head": "head_dim",
    "recurrence": "recurrence", "output_gate": "output_gate", "rope_base": "rope_theta", "norm_eps": "rms_norm_eps",
    "max_len": "max_position_embeddings",
}  # fmt: skip


def export_hf(folder: str | Path, target: str | Path) -> ModelConfig:
    """Write a model folder as a Hugging Face-style one: model.safetensors and a config.json in the hub's words.

    Raises:
        CheckpointError: no model folder, or `target` is one already.
    """
    config, weights = map_weights(folder)
    target = Path(target)
    if _is_ours(target):
        raise CheckpointError(
            f"{target}: is a ratplus model folder already; if the export went there, it would take the place of the "
            "model folder itself; choose another target"
        )
    write_safetensors(target / WEIGHTS_FILE, weights, {"format": "pt"})
    plain = asdict(config)
    words = {theirs: plain[ours] for ours, theirs in _HF_KEYS.items()} | {
        "architectures": ["RATPlus"],
        "model_type": "ratplus",
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_mult * config.d_model,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        # What has no word of the hub's own.
        **{f"ratplus_{k}": v for k, v in plain.items() if k not in _HF_KEYS and k != "ffn_mult"},
    }
    write_atomically(target / CONFIG_FILE, json.dumps(words, indent=2, sort_keys=True) + "\n")
    return config


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a model folder of our own; none, or a damaged one, is not."""
    try:
        words = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(words, dict) and {"model", "sha256"} <= words.keys()


def _read_hf(folder: Path) -> Checkpoint:
    path = folder / CONFIG_FILE
    try:
        if _is_ours(folder):
            raise CheckpointError(f"{folder}: is a ratplus model folder already; name it with model.init_from=...")
        words = json.loads(path.read_text())
        if words.get("model_type") != "ratplus":
            raise CheckpointError(f"{path}: model_type is {words.get('model_type')!r}, not 'ratplus'")
        plain = {ours: words[theirs] for ours, theirs in _HF_KEYS.items()}
        plain |= {k.removeprefix("ratplus_"): v for k, v in words.items() if k.startswith("ratplus_")}
        config = ModelConfig(**plain, ffn_mult=words["intermediate_size"] // words["hidden_size"])
        weights = map_safetensors(folder / WEIGHTS_FILE)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no model here ({Path(error.filename).name} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    check_numbers(weights, str(folder))
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(config), folder)
    return Checkpoint(config, {name: float32(tensor) for name, tensor in weights.items()})
