"""Patterns: what one attention head may see, and how patterns spread over the layers and heads of a model.

Torch-free, so that tables and dry runs stay light. Definition: paper arXiv 2602.18196, section on sparse inference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import numpy as np

_LABEL = re.compile(r"(?:D(?P<dilation>\d+)|stream)(?:-W(?P<window>\d+))?(?:-I(?P<sinks>\d+))?")
_MAP_LABEL = re.compile(r"(?P<over>layers|heads)\[(?P<runs>.+)\]")
_RUN = re.compile(r"(?P<label>.+?)(?:x(?P<count>\d+))?")


def is_whole(value) -> TypeGuard[int]:
    """Whether a value is a whole number, Python's or NumPy's. True and False are not, though they count as 1 and 0."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _whole_number(name: str, value, least: int) -> int:
    if not is_whole(value):
        raise ValueError(f"pattern.{name}: got {value!r}; it must be a whole number ≥ {least}")
    if value < least:
        raise ValueError(f"pattern.{name}: got {value}; it must be ≥ {least}")
    return int(value)


@dataclass(frozen=True, order=False)
class Pattern:
    """What one head sees: every `dilation`-th key, the `window` tokens before the query, the first `sinks` tokens.

    Key j is visible from query t iff j <= t and ((j+1) mod dilation == 0 or t - j <= window or j < sinks).
    The query itself is always visible, so a head sees window + 1 recent keys.

    Args:
        dilation: keep the last key of each block of this length; 1 is dense; None keeps no dilated key (streaming).
        window: number of tokens before the query that are visible besides itself.
        sinks: number of initial tokens that stay visible.

    Raises:
        ValueError: dilation < 1, window < 0, sinks < 0, or a value that is not a whole number.
    """

    dilation: int | None = 1
    window: int = 0
    sinks: int = 0

    def __post_init__(self):
        if self.dilation is not None:
            if not is_whole(self.dilation) or self.dilation < 1:
                raise ValueError(
                    f"pattern.dilation: got {self.dilation!r}; it must be a whole number ≥ 1 (1 is dense), "
                    "or null for no dilated keys"
                )
            object.__setattr__(self, "dilation", int(self.dilation))
        object.__setattr__(self, "window", _whole_number("window", self.window, 0))
        object.__setattr__(self, "sinks", _whole_number("sinks", self.sinks, 0))

    @property
    def dense(self) -> bool:
        """True if every earlier key is visible, whatever the length."""
        return self.dilation == 1

    @property
    def canonical(self) -> Pattern:
        """The simplest pattern with the same visibility: dense needs neither window nor sinks."""
        return Pattern() if self.dense else self

    @property
    def label(self) -> str:
        """Short name: `D16`, `D16-W256-I4`, `stream-W1024-I4`."""
        parts = ["stream" if self.dilation is None else f"D{self.dilation}"]
        if self.window:
            parts.append(f"W{self.window}")
        if self.sinks:
            parts.append(f"I{self.sinks}")
        return "-".join(parts)

    @classmethod
    def from_label(cls, label: str) -> Pattern:
        """Inverse of `label`.

        Raises:
            ValueError: a text that is no label, or a label of an impossible pattern.
        """
        found = _LABEL.fullmatch(label)
        if found is None:
            raise ValueError(
                f"pattern {label!r}: not a label; allowed: D<dilation> or stream, then -W<window> and -I<sinks>, "
                "such as D16, D16-W256-I4, stream-W1024-I4"
            )
        dilation, window, sinks = (None if text is None else int(text) for text in found.groups())
        return cls(dilation, window or 0, sinks or 0)

    @property
    def sort_key(self) -> tuple[float, int, int]:
        """Orders patterns by dilation (streaming last), then window, then sinks."""
        return (float("inf") if self.dilation is None else self.dilation, self.window, self.sinks)

    def visible(self, q_len: int, kv_len: int | None = None) -> np.ndarray:
        """Visibility mask, bool [q_len, kv_len].

        The queries are the last `q_len` of `kv_len` positions (default: all of them). This is the definition, and it
        is quadratic: for tests, pictures and short sequences.
        """
        kv_len = q_len if kv_len is None else kv_len
        if kv_len < q_len:
            raise ValueError(f"visible: kv_len={kv_len} is smaller than q_len={q_len}; queries are the last positions")
        import numpy as np

        t = np.arange(kv_len - q_len, kv_len)[:, None]
        j = np.arange(kv_len)[None, :]
        seen = (t - j <= self.window) | (j < self.sinks)
        if self.dilation is not None:
            seen |= (j + 1) % self.dilation == 0
        return seen & (j <= t)

    def kv_entries(self, length):
        """Entries that a decode cache holds before the step at position `length` (an int or an int array)."""
        import numpy as np

        n = np.asarray(length)
        dilated = 0 if self.dilation is None else (n - self.window) // self.dilation - self.sinks // self.dilation
        kept = np.where(n <= self.sinks + self.window, n, self.sinks + self.window + dilated)
        return int(kept) if np.ndim(length) == 0 else kept

    def to_dict(self) -> dict:
        return {"dilation": self.dilation, "window": self.window, "sinks": self.sinks}


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
                        "change the pattern, or use model.kv_heads=null"
                    )
        return PatternMap(tuple(row[::group] for row in self.rows))

    def __getitem__(self, layer: int) -> tuple[Pattern, ...]:
        return self.rows[layer]

    def __iter__(self) -> Iterator[tuple[Pattern, ...]]:
        return iter(self.rows)

    @property
    def is_uniform(self) -> bool:
        return len({p for row in self.rows for p in row}) == 1

    @property
    def label(self) -> str:
        """`D16` if uniform; else runs such as `layers[D1x2,D64x2]` or `heads[D1,D64x3]`, `mixed[...]` for both."""
        if self.is_uniform:
            return self.rows[0][0].label
        if all(len(set(row)) == 1 for row in self.rows):
            return f"layers[{_runs([row[0] for row in self.rows])}]"
        if len(set(self.rows)) == 1:
            return f"heads[{_runs(self.rows[0])}]"
        return "mixed[" + "|".join(_runs(row) for row in self.rows) + "]"

    @classmethod
    def from_label(cls, label: str, layers: int, heads: int) -> PatternMap:
        """The map that a Pattern's label, or `layers[...]` or `heads[...]` stands for in a model of the given size.

        A list of runs that is shorter than the model is repeated in turn: `layers[D1,D64]` fits any depth.

        Raises:
            ValueError: a text that is no label, or a list that is longer than the model.
        """
        found = _MAP_LABEL.fullmatch(label)
        if found is None:
            return cls.uniform(Pattern.from_label(label), layers, heads)
        over, need = found["over"], layers if found["over"] == "layers" else heads
        row: list[Pattern] = []
        for text in found["runs"].split(","):
            run = _RUN.fullmatch(text.strip())
            row += [Pattern.from_label(run["label"] if run else text)] * int(run["count"] or 1 if run else 1)
        if not 1 <= len(row) <= need:
            raise ValueError(f"pattern {label!r}: names {len(row)} {over}, but the model has {need}")
        row = [row[i % len(row)] for i in range(need)]
        return cls.per_layer(row, heads) if over == "layers" else cls.per_head(row, layers)

    def to_dict(self) -> dict:
        """Canonical plain form: scalars if uniform, else `[layers][heads]` lists; equal maps give equal dicts."""
        if self.is_uniform:
            return self.rows[0][0].to_dict()
        return {
            name: [[getattr(p, name) for p in row] for row in self.rows] for name in ("dilation", "window", "sinks")
        }

    @classmethod
    def from_dict(cls, plain: dict, layers: int, heads: int) -> PatternMap:
        """Inverse of `to_dict`, for a model of the given size."""
        return build_map(plain["dilation"], plain["window"], plain["sinks"], layers, heads)


def build_map(dilation, window, sinks, layers: int, heads: int, over: str = "layers", tile: bool = False) -> PatternMap:
    """PatternMap from config values: each an int (dilation also None), a list, or a nested list [layers][heads].

    Args:
        over: what a flat list runs over, "layers" or "heads".
        tile: repeat a flat list in turn over the model, so that one list fits models of any size.

    Raises:
        ValueError: a list of the wrong length, or an impossible pattern; the message names the key.
    """
    grids = {
        name: _grid(name, value, layers, heads, over, tile)
        for name, value in (("dilation", dilation), ("window", window), ("sinks", sinks))
    }
    return PatternMap(
        tuple(
            tuple(Pattern(grids["dilation"][i][h], grids["window"][i][h], grids["sinks"][i][h]) for h in range(heads))
            for i in range(layers)
        )
    )


def _grid(name: str, value, layers: int, heads: int, over: str, tile: bool) -> list[list]:
    """Spread one config value to a [layers][heads] grid."""
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


def _runs(patterns: Sequence[Pattern]) -> str:
    """Run-length label of a sequence of patterns."""
    parts: list[list] = []
    for p in patterns:
        if parts and parts[-1][0] == p.label:
            parts[-1][1] += 1
        else:
            parts.append([p.label, 1])
    return ",".join(name if count == 1 else f"{name}x{count}" for name, count in parts)
