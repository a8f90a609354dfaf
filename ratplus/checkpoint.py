"""Model files: our own format (safetensors + config.json) and the reference implementation's state_dict."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ratplus.config import ModelConfig
from ratplus.model import RATPlus
from ratplus.record import write_atomically

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another architecture."""


def save(model: RATPlus, folder: str | Path) -> Path:
    """Write `model.safetensors`, then `config.json` with the weights' SHA-256; each file whole or not at all."""
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = save_safetensors(weights)
    write_atomically(folder / WEIGHTS_FILE, data)
    config = {"format": FORMAT, "model": asdict(model.config), "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    return folder


def load(folder: str | Path, config: ModelConfig | None = None) -> RATPlus:
    """Read a folder written by `save`.

    Args:
        config: if given, the checkpoint must be of exactly this shape.

    Raises:
        CheckpointError: files missing, truncated or altered, or another architecture than `config`.
    """
    folder = Path(folder)
    try:
        stored = json.loads((folder / CONFIG_FILE).read_text())
        found = ModelConfig(**stored["model"])
        expected_hash = stored["sha256"]
        data = (folder / WEIGHTS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint here ({Path(error.filename).name} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: damaged ({error}); restore it or train again") from None
    if hashlib.sha256(data).hexdigest() != expected_hash:
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: SHA-256 differs from {CONFIG_FILE}: truncated or altered")
    if config is not None:
        check_same_shape(found, config, folder)
    model = RATPlus(found)
    model.load_state_dict(load_safetensors(data))
    return model


def check_same_shape(found: ModelConfig, wanted: ModelConfig, where) -> None:
    """Raise CheckpointError naming every field in which a checkpoint differs from what is asked for."""
    a, b = asdict(found), asdict(wanted)
    differing = [f"{name}={a[name]} there, {b[name]} asked for" for name in a if a[name] != b[name]]
    if differing:
        raise CheckpointError(f"{where}: checkpoint of another architecture ({'; '.join(differing)})")


# ---- the reference implementation's layout ------------------------------------------------------------------------

_LAYER_KEYS = {
    "seq_layer.input_norm.weight": "mixer.norm.weight",
    "seq_layer.in_proj.weight": "mixer.in_proj.weight",
    "seq_layer.out_proj.weight": "mixer.out_proj.weight",
    "hidden_layer.ln.weight": "ffn.norm.weight",
    "hidden_layer.fc1.weight": "ffn.up.weight",
    "hidden_layer.fc2.weight": "ffn.down.weight",
}
_EMBED, _HEAD, _NORM = "embedding.wte.weight", "head.lm_head.weight", "backbone.ln.weight"
_LAYER_PREFIX = "backbone.layers."


def load_official(source: str | Path | dict, d_head: int = 128, max_len: int = 4096) -> RATPlus:
    """Model from the reference implementation's state_dict.

    Recognised: a bare state_dict or a checkpoint dict with the weights under "task"; keys with or without
    "_orig_mod." (compiled); the forget gate inside in_proj or apart as fgate_proj; with and without recurrence.

    Args:
        source: file (read with weights_only) or state_dict.
        d_head: channels per head, which the layout does not store.
        max_len: of the model that is built.

    Raises:
        CheckpointError: unreadable file, missing or unknown keys, shapes that do not fit, an untied output head.
    """
    if isinstance(source, dict):
        where, state = "state_dict", source
    else:
        where, state = str(source), _read_torch(Path(source))
    if isinstance(state.get("task"), dict):
        state = state["task"]
    state = {k.replace("_orig_mod.", ""): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    # A checkpoint of the whole task object keeps the model one level down.
    if _EMBED not in state:
        inner = {k.partition(".")[2]: v for k, v in state.items()}
        state = inner if _EMBED in inner else state
    if _EMBED not in state:
        raise CheckpointError(f"{where}: not in the reference layout ({_EMBED} is missing)")

    layers = _split_layers(state, where)
    own, recurrence, gate = _translate(state, layers, where)
    vocab, d = state[_EMBED].shape
    try:
        config = ModelConfig(
            vocab_size=vocab,
            layers=len(layers),
            d_model=d,
            d_head=d_head,
            recurrence=recurrence,
            output_gate=gate,
            ffn_mult=layers[0]["hidden_layer.fc1.weight"].shape[0] // d,
            max_len=max_len,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}; pass the d_head it was trained with") from None
    model = RATPlus(config)
    for name, parameter in model.state_dict().items():
        if name not in own:
            raise CheckpointError(f"{where}: no weights for {name}")
        if own[name].shape != parameter.shape:
            raise CheckpointError(f"{where}: {name} has shape {list(own[name].shape)}, needs {list(parameter.shape)}")
    model.load_state_dict({k: v.float() for k, v in own.items()})
    return model


def _read_torch(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # torch raises half a dozen types for damaged or unsafe files
        # Torch's own text may advise to load with weights_only=False, which runs whatever the file says.
        raise CheckpointError(f"{path}: cannot be read as a weights-only checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def _split_layers(state: dict, where: str) -> list[dict]:
    """The weights of each layer, keyed by what follows the layer number."""
    layers: dict[int, dict] = {}
    for key, tensor in state.items():
        if key.startswith(_LAYER_PREFIX):
            number, _, rest = key.removeprefix(_LAYER_PREFIX).partition(".")
            if not number.isdigit():
                raise CheckpointError(f"{where}: unknown key {key}")
            layers.setdefault(int(number), {})[rest] = tensor
        elif key not in (_EMBED, _HEAD, _NORM):
            raise CheckpointError(f"{where}: unknown key {key}")
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise CheckpointError(f"{where}: layers {sorted(layers)} are not numbered from 0 without gaps")
    return [layers[i] for i in range(len(layers))]


def _translate(state: dict, layers: list[dict], where: str) -> tuple[dict, bool, bool]:
    """Our key names, and whether the model has the recurrence and the output gate."""
    d = state[_EMBED].shape[1]
    if _HEAD in state and not torch.equal(state[_HEAD], state[_EMBED]):
        raise CheckpointError(f"{where}: {_HEAD} differs from {_EMBED}; only tied embeddings are supported")
    if _NORM not in state:
        raise CheckpointError(f"{where}: {_NORM} is missing")
    own = {"embed.weight": state[_EMBED], "norm.weight": state[_NORM]}
    blocks = set()
    for i, layer in enumerate(layers):
        layer = dict(layer)
        gate = layer.pop("seq_layer.fgate_proj.weight", None)
        if gate is not None and "seq_layer.in_proj.weight" in layer:
            layer["seq_layer.in_proj.weight"] = torch.cat((layer["seq_layer.in_proj.weight"], gate))
        if set(layer) != set(_LAYER_KEYS):
            wrong = sorted(set(layer) ^ set(_LAYER_KEYS))
            raise CheckpointError(f"{where}: layer {i} has missing or unknown keys: {', '.join(wrong)}")
        own |= {f"layers.{i}.{_LAYER_KEYS[k]}": v for k, v in layer.items()}
        blocks.add(layer["seq_layer.in_proj.weight"].shape[0] / d)
    # The reference model always has the output gate: 5 blocks (o,q,k,v,g) or 4 (o,q,k,v).
    if blocks not in ({4.0}, {5.0}):
        raise CheckpointError(f"{where}: in_proj holds {sorted(blocks)} blocks of d rows; known are 4 and 5")
    return own, blocks == {5.0}, True
