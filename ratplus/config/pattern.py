"""`pattern=`: what the heads see. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ratplus.config.check import check
from ratplus.pattern import Pattern, PatternMap, build_map, is_whole
from ratplus.pattern.fields import SNAP_DEFAULTS, STATIC, TOP_DEFAULTS

# Pattern's field -> key, where they differ: `over` is what a list of values runs over.
_KEYS = {"over": "blocks_of"}
# A value of only_layer and only_head: the sweep makes a cell of every one.
EACH = "each"


@dataclass
class PatternSection:
    """`pattern=`: what the heads see at inference; dense by default. Values may differ by layer and head."""

    dilation: Any = 1
    """D: of the far keys, each query sees the last of every block of D; 1 is dense, null keeps none. Allowed: ≥ 1,
    null, a list, [layers][heads]."""
    window: Any = 0
    """W: how many tokens before a query are visible besides it. None by default, so that a dilation is seen by itself.
    Allowed: ≥ 0, a list, [layers][heads]."""
    sinks: Any = 0
    """I: initial tokens that every query sees. None by default, for the same reason. Allowed: ≥ 0, a list,
    [layers][heads]."""
    top: Any = None
    """K: blocks of keys that each query selects and reads, its own block and block 0 included, besides what dilation,
    window and sinks show. Null selects nothing. Allowed: ≥ 2 (≥ 1 with first=false), null, a list, [layers][heads]."""
    block: Any = 64
    """B: tokens of a block, the same for all heads of a layer. The papers' 64. Allowed: ≥ 1, ≤ train.context, a list,
    [layers][heads]."""
    score: Any = "mean"
    """How a query ranks blocks: by its product with the mean key (mean, MoBA), by an upper bound of its product with
    any key (bounds, Quest), or at random, which the others must beat. Allowed: mean, bounds, random, a list,
    [layers][heads]."""
    first: Any = True
    """Whether block 0 is always read (and counts). True, as in arXiv 2605.28640; MoBA's own is false. Allowed: true,
    false, a list, [layers][heads]."""
    phase: Any = "both"
    """Where blocks are selected: at every position (both), only at generated tokens (decode, as Quest; the prompt is
    dense), or only in the prompt (prefill, as MoBA in arXiv 2605.28640). Only both has a loss. Allowed: both, decode,
    prefill, a list, [layers][heads]."""
    blocks_of: Any = "all"
    """Which keys blocks are made of: all of them, or those alone that the dilation keeps; then a query sees kept keys
    of its selected blocks only. All, as in the paper. Allowed: all, kept, a list, [layers][heads]."""
    seed: Any = 0
    """Seed of score=random. 0 is as good as any. Allowed: ≥ 0, ≤ 2147483647, a list, [layers][heads]."""
    snap: Any = None
    """SnapKV: entries that a head keeps of a prompt when generation begins, the last `observe` and the sinks included.
    Null keeps all. It has no loss, and needs dilation=null. Allowed: ≥ observe + sinks, null, a list,
    [layers][heads]."""
    observe: Any = 64
    """Last queries of the prompt whose attention decides what snap keeps. As in arXiv 2605.28640. Allowed: ≥ 1, ≤
    train.context, a list, [layers][heads]."""
    kernel: Any = 5
    """Neighbouring entries over which that attention is pooled. SnapKV's own default. Allowed: an odd number ≥ 1, a
    list, [layers][heads]."""
    pool: Any = "avg"
    """How it is pooled. SnapKV's own default. Allowed: avg, max, a list, [layers][heads]."""
    label: str | None = None
    """The whole map by its label, in place of all other keys. `pattern=LABEL` sets it. Null takes the keys. Allowed: a
    label such as D16-W64, layers[D1,D64], mixed[D1,D64|D64,D1], null."""
    only_layer: Any = None
    """The one layer that has the pattern; all others are dense, so that its part in the damage is seen. Null: all have
    it. In a sweep `each` makes a cell of every layer. Allowed: ≥ 0, each, null."""
    only_head: Any = None
    """The one head of keys (in every layer, or in only_layer) that has the pattern; all others are dense. Null: all
    have it. In a sweep `each` makes a cell of every head of keys. Allowed: ≥ 0, each, null."""
    over: str = "layers"
    """What a flat list of values runs over. Layers, the more usual hybrid. Allowed: layers, heads."""
    tile: bool = False
    """Whether a flat list shorter than the model is repeated along it. False refuses such a list, which is more often a
    mistake."""

    def __post_init__(self):
        check(self.over in ("layers", "heads"), "pattern.over", self.over, "allowed: layers, heads")
        for switch, defaults in (("top", TOP_DEFAULTS), ("snap", SNAP_DEFAULTS)):
            if self._given(switch) is not None:
                continue
            for name, default in defaults.items():
                value = self._given(name)
                check(value == default, f"pattern.{_KEYS.get(name, name)}", value,
                      f"it means nothing with pattern.{switch}=null; set pattern.{switch}")  # fmt: skip
        names = (*STATIC, *TOP_DEFAULTS, *SNAP_DEFAULTS)
        if self.label is not None:
            self._check_alone()
        # Lists and maps are as large as some model: `Config` builds them.
        whole = self.label is None or "[" not in self.label
        if whole and not any(isinstance(self._given(name), (list, tuple)) for name in names):
            self._everywhere(1, 1)
        hidden = self.dilation == 1 and not isinstance(self.dilation, bool) and self.top is not None
        check(not hidden, "pattern.top", self.top, "with pattern.dilation=1 every key is visible anyway; use "
              "pattern.dilation=null for selected blocks alone, or a dilation ≥ 2 besides them")  # fmt: skip

    def _check_alone(self) -> None:
        """Refuse other keys beside a label, which would be without effect."""
        bare = Pattern().to_dict() | TOP_DEFAULTS | SNAP_DEFAULTS
        for name, default in bare.items():
            value = self._given(name)
            check(value == default, f"pattern.{_KEYS.get(name, name)}", value,
                  f"pattern.label={self.label} says all; leave one of them out")  # fmt: skip

    def _given(self, field: str):
        """The value of the key of a field of Pattern."""
        return getattr(self, _KEYS.get(field, field))

    def build(self, layers: int, heads: int, kv_heads: int | None = None) -> PatternMap:
        """The map of a model; `kv_heads` are its heads of keys, None if there are as many as heads.

        Raises:
            ValueError: lists that do not fit the model, or a layer or head that it has not.
        """
        return self._alone(self._everywhere(layers, heads), kv_heads or heads)

    def _alone(self, patterns: PatternMap, kv_heads: int) -> PatternMap:
        """The map with everything dense but `only_layer` and `only_head`."""
        if self.only_layer is None and self.only_head is None:
            return patterns
        wanted = []
        for key, value, count in (
            ("only_layer", self.only_layer, patterns.layers),
            ("only_head", self.only_head, kv_heads),
        ):
            fits = value is None or value == EACH or (is_whole(value) and 0 <= value < count)
            check(fits, f"pattern.{key}", value, f"it must be between 0 and {count - 1}, {EACH} in a sweep, or null")
            wanted.append(0 if value == EACH else value)
        layer, head = wanted
        group = patterns.heads // kv_heads
        return PatternMap(
            tuple(
                tuple(p if layer in (None, i) and head in (None, j // group) else Pattern() for j, p in enumerate(row))
                for i, row in enumerate(patterns)
            )
        )

    def _everywhere(self, layers: int, heads: int) -> PatternMap:
        if self.label is not None:
            return PatternMap.from_label(self.label, layers, heads)
        chosen = {name: self._given(name) for name in (*TOP_DEFAULTS, *SNAP_DEFAULTS)}
        return build_map(
            self.dilation, self.window, self.sinks, layers, heads, over=self.over, tile=self.tile, selection=chosen
        )

    def check_fits(self, patterns: PatternMap, context: int) -> None:
        """Refuse what is larger than the context. `patterns` is what `build` makes of this for the cell's model."""
        every = {p for row in patterns for p in row}
        for name, value in (
            ("sinks", max(p.sinks for p in every)),
            ("block", max((p.block for p in every if p.top is not None), default=0)),
            ("observe", max((p.observe for p in every if p.snap is not None), default=0)),
        ):
            check(value <= context, f"pattern.{name}", value, f"it must be ≤ train.context={context}")
