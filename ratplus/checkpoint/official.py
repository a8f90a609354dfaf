"""The reference implementation's checkpoints: understood, checked, and read a tensor at a time.

A reference file is a dict of the weights, bare or under "task", with or without "_orig_mod." (compiled); the forget
gate is the fifth block of in_proj or, in older files, apart as fgate_proj. The tied output head is stored twice.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError, refuse_stand_in
from ratplus.checkpoint.folder import map_weights, shapes_of
from ratplus.checkpoint.foreign_tensors import map_foreign
from ratplus.checkpoint.targets import check_file, check_target
from ratplus.checkpoint.tensor_file import Lazy, check_shapes
from ratplus.checkpoint.untrusted import check_claims, check_plain, check_unpacked
from ratplus.config.model import ModelConfig
from ratplus.model import RATPlus, empty_model
from ratplus.pattern import PatternMap
from ratplus.records.atomic import new_file

LAYER_KEYS = {
    "seq_layer.input_norm.weight": "mixer.norm.weight",
    "seq_layer.in_proj.weight": "mixer.in_proj.weight",
    "seq_layer.out_proj.weight": "mixer.out_proj.weight",
    "hidden_layer.ln.weight": "ffn.norm.weight",
    "hidden_layer.fc1.weight": "ffn.up.weight",
    "hidden_layer.fc2.weight": "ffn.down.weight",
}
EMBED, HEAD, NORM = "embedding.wte.weight", "head.lm_head.weight", "backbone.ln.weight"
LAYER_PREFIX, _IN, _GATE = "backbone.layers.", "seq_layer.in_proj.weight", "seq_layer.fgate_proj.weight"
# Where trainers put the weights, the likeliest first; of others there may be only one.
_PLACES = ("", "task", "state_dict", "model", "model_state_dict", "module")
_DEEPEST = 4  # levels of dicts that are looked through
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (layers, d_model) -> name and channels per head of the paper's models.
_PAPER = {(24, 2048): ("1.5B", 128), (28, 2560): ("2.6B", 128), (32, 4096): ("7.6B", 128)}


@dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint, understood and checked: its shape, and weights by our names, each made when used.

    Attributes:
        patterns: what the model's heads see where nobody asks for another pattern; None: everything.
        files: of its tokenizer, by name.
        family: the kind of model, if it is not one of ours (`llama`, `qwen3`).
        tokenizer: facts of its tokenizer, where its files do not say all.
    """

    config: ModelConfig
    weights: dict[str, Lazy]
    patterns: PatternMap | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    family: str | None = None
    tokenizer: dict | None = None

    @property
    def size(self) -> str | None:
        """Name of the paper's model of this shape."""
        return _PAPER.get((self.config.layers, self.config.d_model), (None,))[0]

    @property
    def parameters(self) -> int:
        return sum(torch.Size(lazy.shape).numel() for lazy in self.weights.values())

    def model(self) -> RATPlus:
        """A model with these weights, each made when its turn comes."""
        model = empty_model(self.config)
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                parameter.copy_(self.weights[name].make())
        return model


def load_official(source: str | Path | dict, d_head: int = 128, max_len: int = 4096) -> RATPlus:
    """Model from the reference implementation's state_dict, in float32.

    Args:
        source: file (read with weights_only) or state_dict.
        d_head: channels per head, which the layout does not store.
        max_len: of the model that is built.

    Raises:
        CheckpointError: unreadable file, missing or unknown keys, shapes or dtypes that do not fit, an untied head.
    """
    return read_official(source, d_head, max_len).model()


def read_official(source: str | Path | dict, d_head: int = 128, max_len: int = 4096) -> Checkpoint:
    """Like load_official, without making a model: a file is mapped into memory and read tensor by tensor."""
    if isinstance(source, dict):
        where, state = "state_dict", source
    else:
        where, state = str(source), _read_file(Path(source))
    state = _weights_in(state, where)
    check_claims(state.values(), where)
    check_numbers(state, where)

    layers = _split_layers(state, where)
    own, recurrence = _translate(state, layers, where)
    config = _shape(state, layers, recurrence, d_head, max_len, where)
    check_shapes({name: lazy.shape for name, lazy in own.items()}, shapes_of(config), where)
    if empty := next((key for key, tensor in state.items() if tensor.is_meta), None):
        raise CheckpointError(
            f"{where}: {empty} is a tensor without values (device meta); save the model after loading it"
        )
    _check_tie(state, where)
    return Checkpoint(config, own)


def _weights_in(state: dict, where: str) -> dict[str, Tensor]:
    """The weights of a checkpoint by the layout's keys, wherever in it they are.

    Trainers put them beside other things, under a key such as "task", "state_dict" or "model", and wrappers of modules
    put their own names before each key.
    """
    found, seen = {}, set()
    level = {"": state}
    for _ in range(_DEEPEST):
        for name, plain in level.items():
            tensors = {str(k).replace("_orig_mod.", ""): v for k, v in plain.items() if isinstance(v, Tensor)}
            if key := next((key for key in tensors if key == EMBED or key.endswith(f".{EMBED}")), None):
                found[name] = _without_prefix(tensors, key.removesuffix(EMBED), where)
        below = {
            f"{n}.{k}".lstrip("."): v for n, plain in level.items() for k, v in plain.items() if isinstance(v, dict)
        }
        # A dict that stands under many names is looked into once, or a small file could make this endless.
        level = {name: plain for name, plain in {id(v): (n, v) for n, v in below.items() if id(v) not in seen}.values()}
        seen |= {id(plain) for plain in level.values()}
    if not found:
        holds = ", ".join(str(key)[:40] for key in list(state)[:4]) or "nothing"
        raise CheckpointError(f"{where}: not in the reference layout ({EMBED} is missing; it holds {holds})")
    chosen = next((name for name in _PLACES if name in found), None)
    if chosen is None and len(found) > 1:
        raise CheckpointError(
            f"{where}: holds several models ({', '.join(found)}); save the one that is meant under state_dict"
        )
    return found[next(iter(found)) if chosen is None else chosen]


def _without_prefix(tensors: dict[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    if stranger := next((key for key in tensors if not key.startswith(prefix)), None):
        raise CheckpointError(f"{where}: unknown key {stranger}")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _read_file(path: Path) -> dict:
    if path.suffix == ".safetensors":
        try:
            return map_foreign(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
    refuse_stand_in(path)
    try:
        check_plain(path)
        check_unpacked(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):
            # Files of before torch 1.6 can't be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # Torch's own text may advise to load with weights_only=False, which runs whatever the file says.
        raise CheckpointError(
            f"{path}: cannot be read as a weights-only checkpoint ({type(error).__name__}){_strangers(path)}"
        ) from None
    except Exception as error:  # torch raises half a dozen types for damaged files
        raise CheckpointError(f"{path}: cannot be read as a weights-only checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return state


def _strangers(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged beyond listing
        return ""
    if not names:
        return ""
    return (
        f": beside weights it holds {', '.join(sorted(names)[:3])}; if you trust it, save its weights alone with "
        'torch.save({"task": ...["task"]}, ...) where it was made'
    )


def check_numbers(state: dict, where: str) -> None:
    kinds = {}
    for key, tensor in state.items():
        kinds.setdefault(tensor.dtype, key)
    strange = [f"{key} is {dtype}".replace("torch.", "") for dtype, key in kinds.items() if dtype not in _DTYPES]
    if strange:
        raise CheckpointError(f"{where}: {strange[0]}; weights are float32, bfloat16 or float16")
    if len(kinds) > 1:
        told = ", ".join(f"{key} {dtype}".replace("torch.", "") for dtype, key in kinds.items())
        raise CheckpointError(f"{where}: weights of several dtypes ({told}); a checkpoint has one")


def _split_layers(state: dict, where: str) -> list[dict]:
    """The weights of each layer, keyed by what follows the layer number."""
    layers: dict[int, dict] = {}
    for key, tensor in state.items():
        if key.startswith(LAYER_PREFIX):
            number, _, rest = key.removeprefix(LAYER_PREFIX).partition(".")
            if not re.fullmatch("[0-9]{1,9}", number):
                raise CheckpointError(f"{where}: unknown key {key}")
            layers.setdefault(int(number), {})[rest] = tensor
        elif key not in (EMBED, HEAD, NORM):
            raise CheckpointError(f"{where}: unknown key {key}")
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise CheckpointError(f"{where}: layers {sorted(layers)[:20]} are not numbered from 0 without gaps")
    return [layers[i] for i in range(len(layers))]


def _translate(state: dict, layers: list[dict], where: str) -> tuple[dict[str, Lazy], bool]:
    """Weights by our names, and whether the model has the recurrence."""
    if state[EMBED].dim() != 2:
        raise CheckpointError(f"{where}: {EMBED} has shape {list(state[EMBED].shape)}, needs [vocabulary, d_model]")
    d = state[EMBED].shape[1]
    if NORM not in state:
        raise CheckpointError(f"{where}: {NORM} is missing")
    own = {"embed.weight": float32(state[EMBED]), "norm.weight": float32(state[NORM])}
    blocks = set()
    for i, layer in enumerate(layers):
        layer = dict(layer)
        gate = layer.pop(_GATE, None)
        if set(layer) != set(LAYER_KEYS):
            wrong = sorted(set(layer) ^ set(LAYER_KEYS))
            raise CheckpointError(f"{where}: layer {i} has missing or unknown keys: {', '.join(wrong)}")
        own |= {f"layers.{i}.{LAYER_KEYS[k]}": float32(v) for k, v in layer.items() if k != _IN}
        parts = (layer[_IN],) if gate is None else (layer[_IN], gate)
        if gate is not None and gate.shape[1:] != layer[_IN].shape[1:]:
            raise CheckpointError(f"{where}: {LAYER_PREFIX}{i}.{_GATE} has shape {list(gate.shape)}, needs {[d, d]}")
        own[f"layers.{i}.{LAYER_KEYS[_IN]}"] = float32(*parts)
        blocks.add(sum(part.shape[0] for part in parts) / d)
    # The reference model always has the output gate: 5 blocks (o,q,k,v,g) or 4 (o,q,k,v).
    if blocks not in ({4.0}, {5.0}):
        raise CheckpointError(f"{where}: in_proj holds {sorted(blocks)} blocks of d rows; known are 4 and 5")
    return own, blocks == {5.0}


def float32(*parts: Tensor) -> Lazy:
    """Parts one below the other, in float32."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Lazy(
        shape, torch.float32, lambda: torch.cat([part.float() for part in parts]) if parts[1:] else parts[0].float()
    )


def _shape(state: dict, layers: list[dict], recurrence: bool, d_head: int, max_len: int, where: str) -> ModelConfig:
    vocab, d = state[EMBED].shape
    name, known = _PAPER.get((len(layers), d), (None, d_head))
    if d_head != known:
        raise CheckpointError(f"{where}: d_head {d_head}, but this is the paper's {name} model, which has {known}")
    try:
        return ModelConfig(
            vocab_size=vocab,
            layers=len(layers),
            d_model=d,
            d_head=d_head,
            recurrence=recurrence,
            output_gate=True,
            ffn_mult=layers[0]["hidden_layer.fc1.weight"].shape[0] // d,
            max_len=max_len,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}; pass the d_head it was trained with") from None


def _check_tie(state: dict, where: str) -> None:
    head, embedding = state.get(HEAD), state[EMBED]
    if head is None or (head.shape == embedding.shape and head.data_ptr() == embedding.data_ptr()):
        return
    if not torch.equal(head, embedding):
        raise CheckpointError(f"{where}: {HEAD} differs from {EMBED}; only tied embeddings are supported")


def export_official(folder: str | Path, target: str | Path, force: bool = False) -> ModelConfig:
    """Write a model folder's weights in the reference layout, float32 under "task"; they are mapped, not loaded.

    Args:
        force: replace a file of this name, unless it holds these very weights, which needs no force.

    Raises:
        CheckpointError: no model folder, a model that the layout has no place for, or `target` is somebody else's.
    """
    target = Path(target)
    check_target(target, Path(folder))
    config, weights = map_weights(folder)
    if not config.attends:
        raise CheckpointError(
            f"{folder}: the reference layout has no place for model.mixer={config.mixer}, and neither has --format hf; "
            "copy the model folder, and load it with ratplus.load"
        )
    default = ModelConfig(config.vocab_size, config.layers, config.d_model, config.d_head)
    for key in (
        "kv_heads", "recurrence_chunk", "output_gate", "rope_base", "rope_scaling", "norm_eps", "query_heads", "ffn",
        "ffn_size", "qkv_bias", "out_bias", "qk_norm", "gate_bias", "tied",
    ):  # fmt: skip
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
    if not _holds(target, state):
        check_file(target, force)
    with new_file(target) as file:
        torch.save({"task": state}, file)
    return config


def _holds(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether a file is an export of exactly these weights, and holds nothing beside them that could be lost."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises half a dozen types for what is no such file
        return False
    if not isinstance(found, dict) or found.keys() != {"task"} or not isinstance(found["task"], dict):
        return False
    there = found["task"]
    return there.keys() == state.keys() and all(
        isinstance(there[name], Tensor) and there[name].dtype == tensor.dtype and torch.equal(there[name], tensor)
        for name, tensor in state.items()
    )
