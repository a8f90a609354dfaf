"""The largest sizes of a model that are believed: far beyond any that was trained.

A config or a sweep folder may be a stranger's. What makes a table of so many heads, or a tensor of so many numbers,
would fill the memory before anybody sees that no weights belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratplus.pattern import is_whole

MOST = {
    "vocab_size": 1 << 32, "layers": 10_000, "d_model": 1 << 17, "d_head": 1 << 17, "ffn_mult": 1024,
    "max_len": 1 << 24, "query_heads": 1 << 16, "ffn_size": 1 << 24,
}  # fmt: skip
_MAY_BE_NULL = ("query_heads", "ffn_size")
MOST_HEADS = 100_000  # of all layers together


def check_shape(shape: Mapping[str, Any], where: str = "model") -> None:
    """Refuse sizes that no model has; of the names in MOST, those that `shape` has are looked at.

    Raises:
        ValueError: one line that names the first size that is no whole number from 1 to MOST, or too many heads.
    """
    for name, most in MOST.items():
        if name not in shape:
            continue
        if name in _MAY_BE_NULL and not (is_whole(shape[name]) and shape[name] > most):
            continue  # what else it may be is the config's to say
        if not (is_whole(shape[name]) and 1 <= shape[name] <= most):
            raise ValueError(f"{where}.{name}: got {shape[name]!r}; it must be a whole number ≥ 1, and ≤ {most}")
    if {"layers", "d_model", "d_head"} <= shape.keys():
        own = shape.get("query_heads")
        heads = own if is_whole(own) else shape["d_model"] // shape["d_head"]
        if shape["layers"] * heads > MOST_HEADS:
            raise ValueError(
                f"{where}.layers: got {shape['layers']}; with {heads} heads in each, the model has "
                f"more than {MOST_HEADS} heads"
            )
