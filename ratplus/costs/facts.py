"""The facts of a cell's pattern that tables, the W&B mirror and plans show: one function, so that all say the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from ratplus.costs.cost import Cost, cost
from ratplus.pattern import PatternMap


@dataclass(frozen=True)
class PatternFacts:
    """What a pattern is and what it costs in one model at one length.

    Attributes:
        pattern: short label, such as `D16-W256-I4` or `layers[D1x2,D64x2]`.
        kind: `dense`, `dilated`, `dilated_local` (window or sinks besides), `streaming` or `hybrid`.
        dilation, window, sinks: of all heads; dilation is None for streaming, all three are None for hybrids.
        cost: exact counts of one sequence, with keys and values in bfloat16 whatever the cell's precision, so that
            cells of different precision compare.
    """

    pattern: str
    kind: str
    dilation: int | None
    window: int | None
    sinks: int | None
    cost: Cost


def pattern_facts(plain: dict, model: dict, context: int) -> PatternFacts:
    """Facts of a pattern as a manifest or record has it.

    Args:
        plain: `PatternMap.to_dict()`.
        model: the model's shape: layers, d_model, d_head, and where they are there query_heads, kv_heads, recurrence.
        context: tokens of the sequence.

    Raises:
        KeyError, ValueError: a key of the shape is missing; pattern and shape do not fit each other.
    """
    # In folders of before these keys, d_model / d_head heads, and as many of keys.
    heads = int(model.get("query_heads") or int(model["d_model"]) // int(model["d_head"]))
    kv_heads = int(model.get("kv_heads") or heads)
    shape = (int(model["layers"]), heads, kv_heads, int(model["d_head"]), bool(model.get("recurrence", False)))
    return _facts(json.dumps(plain, sort_keys=True), *shape, int(context))


@lru_cache(maxsize=4096)  # a sweep has many cells and few patterns
def _facts(
    plain: str, layers: int, heads: int, kv_heads: int, d_head: int, recurrence: bool, context: int
) -> PatternFacts:
    patterns = PatternMap.from_dict(json.loads(plain), layers, heads)
    spent = cost(patterns, context, d_head, recurrence=recurrence, kv_heads=kv_heads)
    first = patterns[0][0]
    plain_first = first.to_dict() if patterns.is_uniform else {}
    numbers = {name: plain_first.get(name) for name in ("dilation", "window", "sinks")}
    return PatternFacts(patterns.label, _kind(patterns), **numbers, cost=spent)


def _kind(patterns: PatternMap) -> str:
    first = patterns[0][0]
    if not patterns.is_uniform:
        return "hybrid"
    if first.dense:
        return "dense"
    if first.dilation is None:
        return "streaming"
    return "dilated_local" if first.window or first.sinks else "dilated"
