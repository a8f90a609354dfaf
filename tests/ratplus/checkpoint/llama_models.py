"""Tiny random models that transformers makes and saves: what the tests of imports read."""

from pathlib import Path

import torch

SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
# Name -> (model_type, words of its config).
CASES = {
    "llama": ("llama", {}),
    "llama_multi_head": ("llama", {"num_key_value_heads": 8}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
    "llama_yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", **ORIGINAL}}),
    "llama_bias": ("llama", {"attention_bias": True}),
    "llama_head_dim": ("llama", {"head_dim": 16}),
    "mistral_window": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2_alternating": ("qwen2", {
        "use_sliding_window": True, "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3_bias_window": ("qwen3", {
        "head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 24,
        "max_window_layers": 1}),
}  # fmt: skip


def their_model(name: str, seed: int = 0):
    """A model of transformers with random weights, norms and biases among them: fresh ones are 1 and 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, words = CASES[name]
    config = AutoConfig.for_model(kind, **{**SHAPE, **words})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            start, spread = (1.0, 0.3) if parameter.dim() == 1 else (0.0, 0.15)
            parameter.copy_(start + spread * torch.randn(parameter.shape, generator=generator))
    return model


def saved(name: str, folder: Path, **how):
    """The model of `name`, saved in `folder` as transformers does."""
    model = their_model(name)
    model.save_pretrained(folder, **how)
    return model
