"""config.json of a Hugging Face-style model folder: a ModelConfig in the hub's words, both ways. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, fields

from ratplus.config.model import ROPE_SCALINGS, ModelConfig

MODEL_TYPE = "ratplus"
SHA256 = "weights_sha256"  # of our own model.safetensors with the same weights
SPARSE_PATTERN = "sparse_pattern"  # label of what the heads see; without the word, everything

_KEYS = {
    "vocab_size": "vocab_size", "layers": "num_hidden_layers", "d_model": "hidden_size", "d_head": "head_dim",
    "recurrence": "recurrence", "output_gate": "output_gate", "rope_base": "rope_theta", "norm_eps": "rms_norm_eps",
    "max_len": "max_position_embeddings",
}  # fmt: skip
# Ours, theirs: of one dict, `rope_scaling`, which is null without scaling.
_ROPE = {
    "rope_scaling": "rope_type", "rope_factor": "factor", "rope_original": "original_max_position_embeddings",
    "rope_low": "low_freq_factor", "rope_high": "high_freq_factor",
}  # fmt: skip
# Which our keys do not hold, or hold in another form: a config.json may not say other than the model is.
_FOLLOWS = ("hidden_act", "tie_word_embeddings", "num_attention_heads", "intermediate_size")
# What transformers loads from the file beside the weights (ratplus/hf/modeling_ratplus.py).
_CLASSES = {"AutoConfig": "RATPlusConfig", "AutoModelForCausalLM": "RATPlusForCausalLM"}
_OWN = "ratplus_"  # before what has no word of the hub's own
# Written only where they are not as in every model of before these keys, so that those are exported as ever.
_LATER_KEYS = ("query_heads", "ffn", "ffn_size", "qkv_bias", "out_bias", "qk_norm", "gate_bias", "tied")
_DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}


def words_of(config: ModelConfig, sha256: str) -> dict:
    """What config.json says of a model."""
    plain = asdict(config)
    scaling = {theirs: plain[ours] for ours, theirs in _ROPE.items() if plain[ours] is not None}
    told = {*_KEYS, *_ROPE, "ffn_mult", "kv_heads"} | {key for key in _LATER_KEYS if plain[key] == _DEFAULTS[key]}
    return {theirs: plain[ours] for ours, theirs in _KEYS.items()} | {
        "architectures": ["RATPlusForCausalLM"],
        "auto_map": {auto: f"modeling_ratplus.{name}" for auto, name in _CLASSES.items()},
        "model_type": MODEL_TYPE,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "silu" if config.ffn == "swiglu" else config.ffn,
        "rope_scaling": None if config.rope_scaling == "none" else scaling,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
        SHA256: sha256,
        **{f"{_OWN}{key}": value for key, value in plain.items() if key not in told},
    }


def config_of(words: dict) -> ModelConfig:
    """The model that config.json tells of.

    Raises:
        KeyError, TypeError, ValueError: a word is missing, unknown, impossible, or of another model than ours.
    """
    words = _in_words_of_old(words)
    plain = {ours: words[theirs] for ours, theirs in _KEYS.items()}
    plain["kv_heads"] = words.get("num_key_value_heads")  # without the word, as many as heads
    plain |= {key.removeprefix(_OWN): value for key, value in words.items() if key.startswith(_OWN)}
    plain |= _rope_of(words.get("rope_scaling"))
    if "ffn_size" not in plain:
        plain["ffn_mult"] = words["intermediate_size"] // words["hidden_size"]
    config = ModelConfig(**plain)
    ours = words_of(config, "")
    for word in _FOLLOWS:
        if words.get(word, ours[word]) != ours[word]:
            raise ValueError(f"{word} is {words[word]!r}, where this model has {ours[word]!r}")
    return config


def _in_words_of_old(words: dict) -> dict:
    """transformers 5 saves `rope_parameters` in place of `rope_theta` and `rope_scaling`."""
    rope = words.get("rope_parameters")
    if rope is None:
        return words
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters is {rope!r}; it must hold keys and values")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {**words, "rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}


def _rope_of(scaling: dict | None) -> dict:
    """Our three keys. The hub has more kinds of scaling than we do, and more settings of each: none may go unheard."""
    if scaling is None or scaling == {"rope_type": "default"}:
        return {}
    ours = {theirs: key for key, theirs in _ROPE.items()}
    unknown = sorted(scaling.keys() - ours.keys())
    if unknown or scaling.get("rope_type") not in ROPE_SCALINGS[1:]:
        what = f"has {unknown[0]}" if unknown else f"is of rope_type {scaling.get('rope_type')!r}"
        raise ValueError(
            f"rope_scaling {what}; known are rope_type {', '.join(ROPE_SCALINGS[1:])}; {', '.join(list(ours)[1:])}"
        )
    return {ours[theirs]: value for theirs, value in scaling.items()}
