"""What a pattern costs a model: exact counts, which are metrics, and times measured on this machine, which are not.

The times are those of `ratplus bench model`, taken in turns with the same model's dense pattern, so that a machine
that is busy with other things slows both.
"""

from __future__ import annotations

import torch

from ratplus.bench.measure import DENSE, Measuring
from ratplus.bench.settings import BenchSettings
from ratplus.config.eval import EfficiencySection
from ratplus.config.model import ModelConfig
from ratplus.costs.budget import parameters
from ratplus.costs.of_model import model_cost
from ratplus.evaluation.metrics import metric
from ratplus.kernels.bench.timing import available_memory_bytes
from ratplus.model import RATPlus
from ratplus.model.cache import KVCache
from ratplus.pattern import PatternMap
from ratplus.records.record import Metric

# The counts take weights, keys and values for bfloat16, whatever the precision of training, so that cells compare.
_BYTES_PER_ELEMENT = 2


def measure_efficiency(
    model: RATPlus, patterns: PatternMap, section: EfficiencySection, device: str
) -> tuple[dict[str, Metric], dict[str, float | str]]:
    """(metrics, timing) of a model under a pattern.

    Metrics, of one sequence in bfloat16: prefill_attention_flops, decode_attention_flops (of the step after the
    prompt), both with what selecting takes, decode_kv_bytes (entries held at the end), decode_read_bytes (keys, values
    and block metadata that the step after them reads, an upper bound where overlaps depend on data),
    decode_cache_bytes (allocated for them, with the state), state_bytes, max_batch (sequences whose caches fit
    section.memory_gb beside the weights).
    Timing, in the model's own precision: prefill_ms, decode_ms_per_token (medians; `_p20`, `_p80`), tokens_per_second,
    dense_prefill_ms, dense_decode_ms_per_token, prefill_peak_bytes, decode_peak_bytes, decode_path.

    Raises:
        ValueError: the caches of such a batch don't fit in memory.
    """
    prompt = section.prompt(model.config.max_len)
    counts = efficiency_counts(model.config, patterns, prompt, section.new_tokens, section.memory_gb)
    # Where the system doesn't tell how much memory is free (macOS), what the section says has to do.
    told = available_memory_bytes(device) is not None
    settings = BenchSettings(
        batches=(section.batch,), contexts=(prompt,), new_tokens=section.new_tokens, repeats=section.repeats,
        prefill_tokens=section.batch * prompt, device=device, memory_gb=None if told else section.memory_gb,
    )  # fmt: skip
    found: dict[str, list] = {"rows": [], "skipped": []}
    dense = PatternMap.from_label(DENSE, model.config.layers, model.config.heads)
    with torch.inference_mode():
        measuring = Measuring("model", model, settings, None, found)
        measuring.at(prompt, section.batch, {DENSE: dense} | {patterns.label: patterns})
    if found["skipped"]:
        whose = "" if told else f" in eval.efficiency.memory_gb={section.memory_gb:g}, weights among it"
        raise ValueError(f"eval.efficiency.batch: got {section.batch}; {found['skipped'][0]['reason']}{whose}")
    rows = {row["pattern"]: row for row in found["rows"]}
    row = rows[patterns.label]
    timing = {"tokens_per_second": row["tokens_per_second"]}
    for name, key in (("prefill_ms", "prefill_ms"), ("decode_ms_per_token", "decode_ms")):
        timing |= {name: row[f"{key}_p50"], f"{name}_p20": row[f"{key}_p20"], f"{name}_p80": row[f"{key}_p80"]}
        timing[f"dense_{name}"] = rows[DENSE][f"{key}_p50"]
    return counts, timing | {key: row[key] for key in ("prefill_peak_bytes", "decode_peak_bytes", "decode_path")}


def efficiency_counts(
    config: ModelConfig, patterns: PatternMap, prompt: int, new_tokens: int, memory_gb: float
) -> dict[str, Metric]:
    """The metrics of `measure_efficiency`; they depend on shapes only."""
    length = prompt + new_tokens
    spent = model_cost(config, patterns, length, _BYTES_PER_ELEMENT, prompt)
    at_prompt = model_cost(config, patterns, prompt, _BYTES_PER_ELEMENT, prompt)
    # As it would be allocated: its areas are rounded up to whole rings and blocks.
    cache = KVCache.empty(config, patterns, 1, length, "meta", torch.bfloat16).bytes()
    left = int(memory_gb * 1e9) - parameters(config) * _BYTES_PER_ELEMENT
    counts = {
        "prefill_attention_flops": at_prompt.attention_flops + at_prompt.selection_flops,
        "decode_attention_flops": at_prompt.decode_flops + at_prompt.decode_selection_flops,
        "decode_kv_bytes": spent.kv_bytes,
        "decode_read_bytes": spent.decode_bytes,
        "decode_cache_bytes": cache,
        "state_bytes": spent.state_bytes,
        "max_batch": max(0, left // cache),
    }
    return {name: metric(value, None, 1) for name, value in counts.items()}
