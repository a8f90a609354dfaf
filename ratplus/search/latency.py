"""Time of a decoding step, predicted from what heads read: a + b * sum + c * (most of a layer), fitted on timings.

A launch waits for its slowest head, so latency does not add up over heads: hence the third term. The fit ranks; what a
search ends with is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.reading import read_json

if TYPE_CHECKING:
    from ratplus.model import RATPlus


@dataclass(frozen=True)
class LatencyFit:
    """Milliseconds a step = base + each * (entries read in all layers and heads of keys) + most * (sum over layers of
    the entries that their busiest head reads).

    Attributes:
        points: timings that it was fitted on.
        error: root mean square of its relative errors on them; worst: the largest.
    """

    config: ModelConfig
    length: int
    base: float
    each: float
    most: float
    points: int
    error: float
    worst: float

    def __call__(self, patterns: PatternMap) -> float:
        return float(np.dot([self.base, self.each, self.most], features(patterns, self.config, self.length)))

    def to_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("base", "each", "most", "points", "error", "worst")}


def features(patterns: PatternMap, config: ModelConfig, length: int) -> list[float]:
    """[1, entries read in all, sum over layers of the most that a head reads] of the step at position `length`."""
    rows = [[p.kv_read(length) + 1 for p in row] for row in patterns.per_kv_head(config.kv_heads)]
    return [1.0, float(sum(map(sum, rows))), float(sum(map(max, rows)))]


def fit(points: Sequence[tuple[PatternMap, float]], config: ModelConfig, length: int) -> LatencyFit:
    """Least squares of relative errors, coefficients ≥ 0.

    Args:
        points: (map, milliseconds a decoding step).

    Raises:
        ValueError: fewer than three different maps.
    """
    if len({patterns for patterns, _ in points}) < 3:
        raise ValueError(
            f"budget: latency: {len(points)} timings; a fit needs at least 3 patterns of this model: time more with "
            "`ratplus bench model`, or leave bench= out and the candidates are timed here"
        )
    times = np.array([ms for _, ms in points])
    table = np.array([features(patterns, config, length) for patterns, _ in points]) / times[:, None]
    best: tuple[float, np.ndarray] | None = None
    for count in (3, 2, 1):  # of three coefficients, every subset may be the one that is not at its bound
        for columns in combinations(range(3), count):
            some, *_ = np.linalg.lstsq(table[:, columns], np.ones(len(times)), rcond=None)
            whole = np.zeros(3)
            whole[list(columns)] = some
            left = float(((table @ whole - 1) ** 2).mean())
            if (whole >= 0).all() and (best is None or left < best[0] - 1e-15):
                best = left, whole
    assert best is not None  # one positive coefficient alone always fits
    errors = np.abs(table @ best[1] - 1)
    base, each, most = map(float, best[1])
    return LatencyFit(
        config, length, base, each, most, len(points), float(np.sqrt((errors**2).mean())), float(errors.max())
    )


def bench_points(path: Path, config: ModelConfig, length: int) -> list[tuple[PatternMap, float]]:
    """Decoding times of `ratplus bench model --json` at batch 1 and the nearest context.

    Raises:
        ValueError: no such file, or none of its rows is of a model of this size.
    """
    try:
        result = read_json(path)
        timed = [row for row in result["rows"] if row.get("decode_ms_p50") and row["batch"] == 1]
        # The file may hold other models too, timed at other contexts.
        rows = [row for row in timed if row["heads"] == config.heads]
        near = min((abs(row["context"] - length) for row in rows), default=0)
        found = [
            (PatternMap.from_label(row["pattern"], config.layers, config.heads), float(row["decode_ms_p50"]))
            for row in rows
            if abs(row["context"] - length) == near
        ]
    except FileNotFoundError:
        raise ValueError(f"bench: {path}: no such file; `ratplus bench model MODEL --json FILE` writes it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"bench: {path}: not a result of `ratplus bench model --json` ({error})") from None
    if not found:
        raise ValueError(
            f"bench: {path}: no decoding times at batch 1 of a model with {config.heads} heads; time this model with "
            "`ratplus bench model`"
        )
    return found


# ---- timings on this machine ------------------------------------------------------------------------------------

_NEW_TOKENS = 8


def decode_ms(model: RATPlus, maps: Sequence[PatternMap], length: int) -> dict[str, float]:
    """Median milliseconds of a decoding step at batch 1 behind about `length` tokens, by label, the dense one among
    them; all are timed in turns.

    Raises:
        ValueError: the caches do not fit in memory.
    """
    import torch

    from ratplus.bench.measure import DENSE, Measuring
    from ratplus.bench.settings import BenchSettings

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
