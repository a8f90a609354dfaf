"""Patterns: what one attention head may see, and how patterns spread over the layers and heads of a model.

Torch-free, so that tables and dry runs stay light. `one_head` holds a head's pattern (its `fields`, its `labels`);
`visibility` and `selection` define what it sees, `entries` counts cache entries. `over_model` holds the map of a model.
"""

from ratplus.pattern.fields import is_whole
from ratplus.pattern.one_head import Pattern
from ratplus.pattern.over_model import PatternMap, build_map

__all__ = ["Pattern", "PatternMap", "build_map", "is_whole"]
