"""Whether a model's prefill runs torch's dense attention somewhere."""

from __future__ import annotations

from ratplus.pattern import PatternMap


def has_dense_layers(patterns: PatternMap, context: int) -> bool:
    """Whether a prefill of so many tokens calls torch's dense attention: where all heads of a layer are dense."""
    for row in patterns:
        kinds = {p.canonical for p in row}
        if all(p.dilation == 1 or p.window >= context - 1 or p.sinks >= context for p in kinds) and len(kinds) == 1:
            return True
    return False
