"""How patterns spread over the layers and heads of a model: `PatternMap`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratplus.pattern.fields import SELECTION, STATIC
from ratplus.pattern.map_labels import label_of_rows, rows_of_label
from ratplus.pattern.one_head import Pattern
from ratplus.pattern.spread import grid


@dataclass(frozen=True)
class PatternMap:
    """One Pattern for every (layer, head): `rows[layer][head]`.

    Build it with `uniform`, `per_layer` or `per_head`; pass it to the model at run time.
    """

    rows: tuple[tuple[Pattern, ...], ...]

    def __post_init__(self):
        if not self.rows or not self.rows[0]:
            raise ValueError("PatternMap: needs at least one layer and one head")
        widths = {len(row) for row in self.rows}
        if len(widths) > 1:
            raise ValueError(f"PatternMap: every layer needs the same number of heads, got {sorted(widths)}")
        for layer, row in enumerate(self.rows):
            blocks = sorted({p.block for p in row if p.top is not None and p.data_dependent})
            if len(blocks) > 1:
                raise ValueError(
                    f"pattern.block: heads of layer {layer} select blocks of {' and '.join(map(str, blocks))} tokens; "
                    "give one block length a layer (pattern.top may differ by head)"
                )

    @classmethod
    def uniform(cls, pattern: Pattern, layers: int, heads: int) -> PatternMap:
        """The same pattern everywhere."""
        return cls(((pattern,) * heads,) * layers)

    @classmethod
    def per_layer(cls, patterns: Sequence[Pattern], heads: int) -> PatternMap:
        """`patterns[l]` for every head of layer l."""
        return cls(tuple((p,) * heads for p in patterns))

    @classmethod
    def per_head(cls, patterns: Sequence[Pattern], layers: int) -> PatternMap:
        """`patterns[h]` for head h of every layer."""
        return cls((tuple(patterns),) * layers)

    @property
    def layers(self) -> int:
        return len(self.rows)

    @property
    def heads(self) -> int:
        return len(self.rows[0])

    def per_kv_head(self, kv_heads: int | None) -> PatternMap:
        """The map of the heads of keys and values, which hold a cache each: `kv_heads` a layer, None for all heads.

        Raises:
            ValueError: heads that share keys and values differ in what they see, or kv_heads does not divide heads.
        """
        if kv_heads is None or kv_heads == self.heads:
            return self
        if kv_heads < 1 or self.heads % kv_heads:
            raise ValueError(f"kv_heads: got {kv_heads}; it must divide the {self.heads} heads of the patterns")
        group = self.heads // kv_heads
        for layer, row in enumerate(self.rows):
            if row.count(row[0]) == self.heads:
                continue
            for first in range(0, self.heads, group):
                shared = {p.canonical: p for p in row[first : first + group]}
                if len(shared) > 1:
                    seen = ", ".join(p.label for p in shared.values())
                    raise ValueError(
                        f"pattern: heads {first} to {first + group - 1} of layer {layer} share keys and values "
                        f"(model.kv_heads={kv_heads}), so they must have the same pattern, but have {seen}; "
                        "give them one pattern; only a model with model.kv_heads=null has a cache for each head"
                    )
        return PatternMap(tuple(row[::group] for row in self.rows))

    def __repr__(self) -> str:
        """Its label and size, in place of every head's fields."""
        return f"PatternMap({self.label!r}, layers={self.layers}, heads={self.heads})"

    def __getitem__(self, layer: int) -> tuple[Pattern, ...]:
        return self.rows[layer]

    def __iter__(self) -> Iterator[tuple[Pattern, ...]]:
        return iter(self.rows)

    @property
    def is_uniform(self) -> bool:
        return len({p for row in self.rows for p in row}) == 1

    @property
    def needs_prompt(self) -> Pattern | None:
        """The first pattern, if any, that shows what it shows only where a prompt ends: a phase, or SnapKV."""
        return next((p for row in self.rows for p in row if p.needs_prompt), None)

    @property
    def in_prompt(self) -> PatternMap:
        """The map that a prompt sees (`Pattern.in_prompt`)."""
        return PatternMap(tuple(tuple(p.in_prompt for p in row) for row in self.rows))

    @property
    def label(self) -> str:
        """`D16` if uniform; else runs such as `layers[D1x2,D64x2]` or `heads[D1,D64x3]`, `mixed[...]` for both."""
        return label_of_rows(self.rows)

    @classmethod
    def from_label(cls, label: str, layers: int, heads: int) -> PatternMap:
        """The map that a Pattern's label, or `layers[...]`, `heads[...]` or `mixed[...]` stands for in a model.

        In `mixed[...]` the layers are apart by `|`, each a list over heads: `mixed[D1,D64|D64,D1]`. A list of runs that
        is shorter than the model is repeated in turn: `layers[D1,D64]` fits any depth.

        Raises:
            ValueError: a text that is no label, or a list that is longer than the model.
        """
        return cls(rows_of_label(label, layers, heads))

    def to_dict(self) -> dict:
        """Canonical plain form: scalars if uniform, else `[layers][heads]` lists; equal maps give equal dicts.

        Keys of a selection stand in it only where a head has one (`Pattern.to_dict`).
        """
        if self.is_uniform:
            return self.rows[0][0].to_dict()
        said = {name for row in self.rows for p in row for name in p.to_dict()}
        names = [*STATIC, *(name for name in SELECTION if name in said)]
        return {name: [[getattr(p, name) for p in row] for row in self.rows] for name in names}

    @classmethod
    def from_dict(cls, plain: dict, layers: int, heads: int) -> PatternMap:
        """Inverse of `to_dict`, for a model of the given size."""
        chosen = {name: plain[name] for name in SELECTION if name in plain}
        return build_map(plain["dilation"], plain["window"], plain["sinks"], layers, heads, selection=chosen)


def build_map(
    dilation,
    window,
    sinks,
    layers: int,
    heads: int,
    over: str = "layers",
    tile: bool = False,
    selection: Mapping[str, Any] | None = None,
) -> PatternMap:
    """PatternMap from config values: each a single value, a list, or a nested list [layers][heads].

    Args:
        over: what a flat list runs over, "layers" or "heads".
        tile: repeat a flat list in turn over the model, so that one list fits models of any size.
        selection: values of Pattern's further fields (`top`, `block`, ..., `snap`, ...), in the same form.

    Raises:
        ValueError: a list of the wrong length, or an impossible pattern; the message names the key.
    """
    values = {"dilation": dilation, "window": window, "sinks": sinks, **(selection or {})}
    grids = {name: grid(name, value, layers, heads, over, tile) for name, value in values.items()}
    # Most heads of a model have one of a few patterns, and checking one takes 0.1 ms. Texts, since True equals 1.
    made: dict[str, Pattern] = {}

    def of_head(layer: int, head: int) -> Pattern:
        fields = {name: rows[layer][head] for name, rows in grids.items()}
        text = repr(fields)
        if text not in made:
            made[text] = Pattern(**fields)
        return made[text]

    return PatternMap(tuple(tuple(of_head(layer, head) for head in range(heads)) for layer in range(layers)))
