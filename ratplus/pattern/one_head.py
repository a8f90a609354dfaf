"""What one attention head may see: `Pattern`. Definition: RAT+, arXiv 2602.18196, and for selection `selection`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ratplus.pattern.entries import entries_held, entries_read, read_is_exact
from ratplus.pattern.fields import (
    SELECTION,
    SNAP_DEFAULTS,
    STATIC,
    at_most,
    checked_snap,
    checked_top,
    is_whole,
    whole_number,
)
from ratplus.pattern.labels import fields_of, label_of
from ratplus.pattern.visibility import selected_mask, static_mask

if TYPE_CHECKING:
    import numpy as np


class _Unset:
    """What `dilation` is where nothing is given: dense alone, none beside a selection, which dense would hide."""

    def __repr__(self) -> str:
        return "1, or None with top or snap"


@dataclass(frozen=True, order=False)
class Pattern:
    """What one head sees: every `dilation`-th key, the `window` tokens before the query, the first `sinks` tokens.

    Key j is visible from query t iff j <= t and ((j+1) mod dilation == 0 or t - j <= window or j < sinks).
    The query itself is always visible, so a head sees window + 1 recent keys. This is the static part.

    Query-aware block selection (`top`): positions are cut into blocks of `block` tokens, counted from 0. Each query
    also sees `top` blocks up to itself: its own, block 0 (if `first`), and those of the highest score; a key that is
    static as well counts once. A pattern with dilation 1 stays dense.

    SnapKV (`snap`): a prompt is dense, and at its end the cache is cut to `snap` entries a head, those that the last
    `observe` queries of the prompt attended to most. It exists in generation only.

    Args:
        dilation: keep the last key of each block of this length; 1 is dense; None keeps no dilated key (streaming).
            Not given: 1, and None with `top` or `snap`.
        window: number of tokens before the query that are visible besides itself.
        sinks: number of initial tokens that stay visible.
        top: blocks that a query reads, the forced ones (its own, block 0) included; None selects nothing.
        block: tokens a block.
        score: "mean" is the query times the mean of a block's keys (MoBA), "bounds" the largest product that keys
            between the block's smallest and largest channels allow (Quest), "random" a hash of the position (a lower
            bound for the others). Query heads that share keys add up their scores.
        first: block 0 is always read.
        phase: "both"; "decode": positions of the prompt are dense; "prefill": positions after it are dense.
        over: "all" keys make up the blocks; "kept": the dilated keys alone, and those of other blocks are hidden.
        seed: of random blocks.
        snap: entries that a head keeps of a prompt, the last `observe` and the sinks included.
        observe: last queries of the prompt whose attention decides.
        kernel: entries that the scores are pooled over, odd.
        pool: "avg" (zeros outside the prompt) or "max".

    Raises:
        ValueError: a value that is not allowed; the line names it as `pattern.<name>`.
    """

    dilation: int | None = cast("int | None", _Unset())
    window: int = 0
    sinks: int = 0
    top: int | None = None
    block: int = 64
    score: str = "mean"
    first: bool = True
    phase: str = "both"
    over: str = "all"
    seed: int = 0
    snap: int | None = None
    observe: int = 64
    kernel: int = 5
    pool: str = "avg"

    def __post_init__(self):
        if isinstance(self.dilation, _Unset):
            alone = self.top is None and self.snap is None
            object.__setattr__(self, "dilation", 1 if alone else None)
        elif self.dilation is not None:
            if not is_whole(self.dilation) or self.dilation < 1:
                raise ValueError(
                    f"pattern.dilation: got {self.dilation!r}; it must be a whole number ≥ 1 (1 is dense), "
                    "or null for no dilated keys"
                )
            object.__setattr__(self, "dilation", at_most("dilation", int(self.dilation)))
        object.__setattr__(self, "window", whole_number("window", self.window, 0))
        object.__setattr__(self, "sinks", whole_number("sinks", self.sinks, 0))
        given = {name: getattr(self, name) for name in (*STATIC, *SELECTION)}
        for name, value in {**checked_top(given), **checked_snap(given)}.items():
            object.__setattr__(self, name, value)

    @property
    def dense(self) -> bool:
        """True if every earlier key is visible, whatever the length."""
        return self.dilation == 1

    @property
    def data_dependent(self) -> bool:
        """True if what is visible depends on queries and keys (or, for random blocks, is drawn as if it did)."""
        return not self.dense and (self.top is not None or self.snap is not None)

    @property
    def needs_prompt(self) -> bool:
        """True if what is visible depends on where the prompt ends: a phase, or SnapKV."""
        return self.data_dependent and (self.phase != "both" or self.snap is not None)

    @property
    def in_prompt(self) -> Pattern:
        """What a prompt sees, wherever it ends: dense if only what follows it selects."""
        if not self.needs_prompt:
            return self
        return replace(self, phase="both") if self.phase == "prefill" else DENSE

    @property
    def canonical(self) -> Pattern:
        """The simplest pattern with the same visibility: dense needs neither window nor sinks nor a selection."""
        return DENSE if self.dense else self

    @property
    def static(self) -> Pattern:
        """Dilation, window and sinks alone, without the selection."""
        return Pattern(self.dilation, self.window, self.sinks)

    @property
    def label(self) -> str:
        """Short name: `D16`, `D16-W256-I4`, `stream-W1024-I4`, `D64-top8x64`, `quest16x64-decode`, `snap1024x64`."""
        return label_of(self)

    @classmethod
    def from_label(cls, label: str) -> Pattern:
        """Inverse of `label`.

        Raises:
            ValueError: a text that is no label, or a label of an impossible pattern.
        """
        return cls(**fields_of(label))

    @property
    def sort_key(self) -> tuple:
        """Orders patterns by dilation, window and sinks. Those without dilated keys stand last, streaming first among
        them, then by the tokens that are selected (top times block, or SnapKV's entries)."""
        budget = (self.top or 0) * self.block + (self.snap or 0)
        dilation = float("inf") if self.dilation is None else self.dilation
        return (dilation, self.window, self.sinks, budget, self.label if budget else "")

    def visible(self, q_len: int, kv_len: int | None = None) -> np.ndarray:
        """Visibility mask, bool [q_len, kv_len].

        The queries are the last `q_len` of `kv_len` positions (default: all of them). This is the definition, and it
        is quadratic: for tests, pictures and short sequences.

        Raises:
            ValueError: kv_len < q_len, or a pattern whose visibility depends on data.
        """
        kv_len = q_len if kv_len is None else kv_len
        if kv_len < q_len:
            raise ValueError(f"visible: kv_len={kv_len} is smaller than q_len={q_len}; queries are the last positions")
        if self.data_dependent:
            raise ValueError(
                f"visible: what {self.label} shows depends on queries and keys; use visible_from(q, k), or "
                "pattern.static.visible for its static part"
            )
        return static_mask(self.canonical, q_len, kv_len)

    def visible_from(self, q, k, prompt: int | None = None, *, layer: int = 0, head: int = 0) -> np.ndarray:
        """Masks of heads that all have this pattern, bool [H, T, T]: the definition where it depends on data.

        Args:
            q: [H, T, d], rotated, as attention uses them; an array or a torch tensor.
            k: [G, T, d], after the recurrence and rotated, as attention (and the cache) uses them. H is a multiple of
                G: query head h shares the keys of head h // (H / G), and heads that share keys see the same.
            prompt: tokens of the prompt, where they matter (`needs_prompt`): positions from there on are generated.
            layer, head: place in the model of the keys' first head; random blocks differ by them.

        Raises:
            ValueError: shapes that do not fit, no prompt where one is needed, or a prompt longer than T.
        """
        q_shape, k_shape = tuple(q.shape), tuple(k.shape)
        fits = len(q_shape) == len(k_shape) == 3 and min(q_shape + k_shape) >= 1
        if not (fits and q_shape[1:] == k_shape[1:] and q_shape[0] % k_shape[0] == 0):
            raise ValueError(
                f"visible_from: q and k have shapes {q_shape} and {k_shape}; give q [heads, length, d] and "
                "k [key heads, length, d], heads a multiple of key heads"
            )
        if self.needs_prompt and prompt is None:
            raise ValueError(f"visible_from: what {self.label} shows depends on where the prompt ends; give prompt=")
        if prompt is not None and not (is_whole(prompt) and 0 <= prompt <= q_shape[1]):
            raise ValueError(f"visible_from: prompt: got {prompt!r}; it must be a whole number ≥ 0 and ≤ {q_shape[1]}")
        return selected_mask(self, q, k, prompt, layer, head)

    def kv_entries(self, length, prompt: int | None = None):
        """Entries that a decode cache holds before the step at position `length` (an int or an int array).

        All keys for a pattern that selects blocks of them: it saves reads, not memory. `prompt` counts for SnapKV: it
        keeps at most `snap` of so many tokens; None: all of `length` is the prompt.
        """
        return entries_held(self, length, prompt)

    def kv_read(self, length, prompt: int | None = None):
        """Entries that the decoding step at position `length` reads of them (an int or an int array).

        Where `kv_read_exact` is false it is an upper bound, since selected blocks may hold static keys as well.
        """
        return entries_read(self, length, prompt)

    @property
    def kv_read_exact(self) -> bool:
        """Whether `kv_read` is exact, and no upper bound."""
        return read_is_exact(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain form. Keys of a selection stand in it only where they are not as if there were none."""
        chosen = {name: getattr(self, name) for name in SELECTION}
        return {name: getattr(self, name) for name in STATIC} | {
            name: value for name, value in chosen.items() if name in self._said() or value != SELECTION[name]
        }

    def _said(self) -> tuple[str, ...]:
        """Fields that are written out even at their default, so that a record says what was selected."""
        if self.top is not None:
            return ("top", "block", "score")
        return tuple(SNAP_DEFAULTS) if self.snap is not None else ()


# One object for all: `torch.compile` follows what a model does with patterns, and cannot make one with defaults.
DENSE = Pattern()
