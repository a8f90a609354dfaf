"""The patterns that a call of a model is given: whether they fit it, and whether they are defined over whole texts."""

from __future__ import annotations

from ratplus.config.mixer import check_dense
from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap


def resolved(config: ModelConfig, patterns: PatternMap | Pattern | None) -> PatternMap:
    """The map of a model that a call means: None is dense everywhere, a single Pattern is used everywhere.

    Raises:
        ValueError: something else, a map of another shape, heads that share keys and values but differ, or anything but
            dense of a model whose mixer is no attention.
    """
    layers, heads = config.layers, config.heads
    if patterns is None:
        patterns = Pattern()
    if isinstance(patterns, Pattern):
        patterns = PatternMap.uniform(patterns, layers, heads)
    if not isinstance(patterns, PatternMap):
        raise ValueError(f"patterns: got {type(patterns).__name__}; give a PatternMap, a Pattern or None (dense)")
    if (patterns.layers, patterns.heads) != (layers, heads):
        raise ValueError(
            f"patterns: made for {patterns.layers} layers × {patterns.heads} heads, "
            f"but the model has {layers} × {heads}"
        )
    patterns.per_kv_head(config.kv_heads)
    check_dense(config.mixer, patterns, "patterns")
    return patterns


def check_whole_texts(patterns: PatternMap) -> None:
    """Raise ValueError for a map that is not defined over whole texts, which have no prompt that ends somewhere."""
    if pattern := patterns.needs_prompt:
        raise ValueError(
            f"patterns: what {pattern.label} shows depends on where a prompt ends, so a whole text has no logits, loss "
            "or training under it; evaluate what is generated (generate(), eval.niah.tasks), or use prefill and step"
        )
