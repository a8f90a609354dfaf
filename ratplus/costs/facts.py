"""The facts of a cell's pattern that tables, the W&B mirror and plans show: one function, so that all say the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from ratplus.config.mixer import ATTENTION, TITLES, check_dense
from ratplus.config.model import ModelConfig
from ratplus.costs.cost import Cost, cost
from ratplus.costs.state import state_cost
from ratplus.pattern import Pattern, PatternMap
from ratplus.pattern.fields import STATIC

# Methods of cells that have no attention.
MIXERS = tuple(title for mixer, title in TITLES.items() if mixer != ATTENTION)


@dataclass(frozen=True)
class PatternFacts:
    """What a pattern is and what it costs in one model at one length.

    Attributes:
        pattern: short label, such as `D16-W256-I4` or `layers[D1x2,D64x2]`.
        kind: `dense`, `dilated`, `dilated_local` (window or sinks besides), `streaming`, `topk`, `quest`, `random`
            (blocks by mean, by bounds, at random), `snapkv` or `hybrid`.
        method: what a reader calls it: the kind in words, and a selection's static part: `top-k + D64`. Where the mixer
            has a state in the place of attention, its name; the kind is dense then, since nothing is left out.
        dilation, window, sinks: of all heads; dilation is None for streaming, all three are None for hybrids.
        selection: the other fields of `Pattern.to_dict`, such as top, block and score; empty where nothing is selected.
        cost: exact counts of one sequence, with keys and values in bfloat16 whatever the cell's precision, so that
            cells of different precision compare.
    """

    pattern: str
    kind: str
    method: str
    dilation: int | None
    window: int | None
    sinks: int | None
    selection: dict
    cost: Cost


def pattern_facts(plain: dict, model: dict, context: int) -> PatternFacts:
    """Facts of a pattern as a manifest or record has it.

    Args:
        plain: `PatternMap.to_dict()`.
        model: the model's shape: layers, d_model, d_head, and where they are there query_heads, kv_heads, recurrence,
            mixer and d_state.
        context: tokens of the sequence.

    Raises:
        KeyError, ValueError: a key of the shape is missing; pattern and shape do not fit each other.
    """
    mixer = model.get("mixer") or ATTENTION
    if mixer != ATTENTION:
        shape = ModelConfig(
            1, model["layers"], model["d_model"], model["d_head"], recurrence=False, mixer=mixer,
            query_heads=model.get("query_heads"), d_state=model.get("d_state"),
        )  # fmt: skip
        patterns = PatternMap.from_dict(plain, shape.layers, shape.heads)
        check_dense(mixer, patterns, "pattern")
        spent = state_cost(shape, int(context))
        return PatternFacts(patterns.label, "dense", TITLES[mixer], 1, 0, 0, selection={}, cost=spent)
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
    same = patterns[0][0] if patterns.is_uniform else None
    whole = same.to_dict() if same is not None else {}
    numbers = {name: whole.pop(name, None) for name in STATIC}
    return PatternFacts(patterns.label, _kind(same), _method(same), **numbers, selection=whole, cost=spent)


def at_most(text: str, exact: bool) -> str:
    """A count as text, marked where it is an upper bound."""
    return text if exact else f"≤ {text}"


# Kind of a pattern that selects blocks, by its score.
_TOP_KINDS = {"mean": "topk", "bounds": "quest", "random": "random"}
_METHODS = {
    "dense": "dense", "dilated": "dilated", "dilated_local": "dilated + window", "streaming": "streaming",
    "topk": "top-k", "quest": "Quest", "random": "random blocks", "snapkv": "SnapKV", "hybrid": "hybrid",
}  # fmt: skip


def _kind(pattern: Pattern | None) -> str:
    """Of the pattern that all heads have; None: they differ."""
    if pattern is None:
        return "hybrid"
    if pattern.dense:
        return "dense"
    if pattern.snap is not None:
        return "snapkv"
    if pattern.top is not None:
        return _TOP_KINDS[pattern.score]
    if pattern.dilation is None:
        return "streaming"
    return "dilated_local" if pattern.window or pattern.sinks else "dilated"


def _method(pattern: Pattern | None) -> str:
    method = _METHODS[_kind(pattern)]
    if pattern is None or not pattern.data_dependent:
        return method
    words = [method] if pattern.phase == "both" else [f"{method} in {pattern.phase}"]
    if pattern.over == "kept":
        words[0] += " of dilated keys"
    if pattern.dilation is not None or pattern.window or pattern.sinks:
        words.append(pattern.static.label)
    return " + ".join(words)
