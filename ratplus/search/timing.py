"""Times of decoding steps under maps, on this machine, with the benchmark's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from ratplus.bench.measure import DENSE, Measuring
from ratplus.bench.settings import BenchSettings
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap

_NEW_TOKENS = 8


def decode_ms(model: RATPlus, maps: Sequence[PatternMap], length: int) -> dict[str, float]:
    """Median milliseconds of a decoding step at batch 1 behind about `length` tokens, by label, the dense one among
    them; all are timed in turns.

    Raises:
        ValueError: the caches do not fit in memory.
    """
    device = model.embed.weight.device.type
    prompt = max(1, min(length, model.config.max_len - _NEW_TOKENS))
    settings = BenchSettings(
        batches=(1,), contexts=(prompt,), new_tokens=_NEW_TOKENS, repeats=7, prefill_tokens=prompt, device=device
    )
    found: dict[str, list] = {"rows": [], "skipped": []}
    wanted = {DENSE: model.resolve_patterns(Pattern())} | {m.label: m for m in maps}
    with torch.inference_mode():
        Measuring("model", model, settings, None, found).at(prompt, 1, wanted)
    if found["skipped"]:
        raise ValueError(f"budget: latency cannot be timed here: {found['skipped'][0]['reason']}")
    return {row["pattern"]: row["decode_ms_p50"] for row in found["rows"]}


def fitting_maps(candidates: Sequence[Pattern], layers: int, heads: int, kv_heads: int) -> list[PatternMap]:
    """Maps for a fit: each candidate everywhere, and each pair of neighbours mixed by layers and by heads, so that the
    sum over heads and the busiest head differ."""
    maps = [PatternMap.uniform(p, layers, heads) for p in candidates]
    group = heads // kv_heads
    for a, b in pairwise(candidates):
        if layers > 1:
            maps.append(PatternMap.per_layer([a if i % 2 else b for i in range(layers)], heads))
        same_block = a.top is None or b.top is None or a.block == b.block
        if kv_heads > 1 and same_block:
            maps.append(PatternMap.per_head([b if (h // group) else a for h in range(heads)], layers))
    return maps
