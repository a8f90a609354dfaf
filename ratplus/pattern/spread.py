"""Spreads a config value, which may be a list, over the layers and heads of a model."""

from __future__ import annotations


def grid(name: str, value, layers: int, heads: int, over: str, tile: bool) -> list[list]:
    """One config value as a grid [layers][heads].

    Args:
        name: the key below `pattern.`, for the line of an error.
        value: a single value, a flat list over `over` ("layers" or "heads"), or a nested list [layers][heads].
        tile: repeat a flat list in turn over the model.

    Raises:
        ValueError: a list of the wrong length.
    """
    if not isinstance(value, (list, tuple)):
        return [[value] * heads for _ in range(layers)]
    nested = [isinstance(item, (list, tuple)) for item in value]
    if any(nested):
        if not all(nested) or len(value) != layers or any(len(row) != heads for row in value):
            raise ValueError(
                f"pattern.{name}: a nested list must hold {layers} layers of {heads} heads each, "
                f"got lengths {[len(r) if isinstance(r, (list, tuple)) else 'single value' for r in value]}"
            )
        return [list(row) for row in value]
    need = layers if over == "layers" else heads
    row = list(value)
    if tile and row:
        row = [row[i % len(row)] for i in range(need)]
    if not row:
        raise ValueError(f"pattern.{name}: got an empty list; give {need} entries, one for each of the {over}")
    if len(row) != need:
        raise ValueError(
            f"pattern.{name}: the list over {over} has {len(value)} entries, but the model has {need} {over}; "
            f"give {need} entries, or set pattern.tile=true to repeat the list"
        )
    return [[x] * heads for x in row] if over == "layers" else [row] * layers
