"""Where a compact cache keeps which token.

One head's slots are [sinks | ring | dilated]:
    sinks    `sinks` slots; token t < sinks lies in slot t and is never overwritten
    ring     `window` + 1 slots; every token is written, to slot sinks + t % (window + 1)
    dilated  append-only; token t with (t + 1) % dilation == 0 and t >= sinks, in order of position
A token is written to all of its places at once, so nothing is copied when it leaves the window: what a step sees is
only a question of counts. dilation -1 (or None) means that the dilated area does not exist.

The functions take ints as well as tensors that broadcast, and import no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

# A position, or a tensor of them. Settings may be tensors too, which no type says.
Int = TypeVar("Int", int, "Tensor")


def slot_count(dilation: int | None, window: int, sinks: int, max_len: int) -> int:
    """Slots that one head needs for sequences of up to `max_len` tokens."""
    dilated = max_len // dilation - sinks // dilation if dilation is not None and dilation >= 1 else 0
    return sinks + window + 1 + max(dilated, 0)


def slot_counts(
    dilation: int | Sequence[int | None] | None, window: int | Sequence[int], sinks: int | Sequence[int], max_len: int
) -> int | list[int]:
    """Slots a head: an int for int settings, a list for settings given as one value a head."""
    if (dilation is None or isinstance(dilation, int)) and isinstance(window, int) and isinstance(sinks, int):
        return slot_count(dilation, window, sinks, max_len)
    settings = (dilation, window, sinks)
    sizes = {len(setting) for setting in settings if setting is not None and not isinstance(setting, int)}
    if len(sizes) > 1:
        raise ValueError(f"slot_counts: dilation, window and sinks have lengths {sorted(sizes)}; they must agree")
    (heads,) = sizes
    columns = ([s] * heads if s is None or isinstance(s, int) else s for s in settings)
    return [slot_count(*(x if x is None else int(x) for x in row), max_len) for row in zip(*columns)]


def ring_slot(position: Int, window: int, sinks: int) -> Int:
    """Slot that token `position` takes in the ring; the token window + 1 later overwrites it."""
    return sinks + position % (window + 1)


def sink_slot(position: Int, sinks: int) -> tuple[Int, Any]:
    """(slot, kept): the slot of token `position` among the sinks, meaningful only where `kept` is true."""
    return position, position < sinks


def dilated_slot(position: Int, dilation: int, window: int, sinks: int) -> tuple[Int, Any]:
    """(slot, kept): the slot of token `position` in the dilated area, meaningful only where `kept` is true."""
    step = _at_least_one(dilation)
    slot = sinks + window + 1 + (position + 1) // step - 1 - sinks // step
    return slot, (dilation >= 1) & ((position + 1) % step == 0) & (position >= sinks)


def dilated_in_use(position: Int, dilation: int, window: int, sinks: int) -> Int:
    """Dilated entries that the step at `position` sees: those that have left its window."""
    step = _at_least_one(dilation)
    left: Any = position - window
    count: Any
    if isinstance(left, int):
        count = max(max(left, 0) // step - sinks // step, 0)
    else:
        count = (left.clamp(min=0) // step - sinks // step).clamp(min=0)
    return count * (dilation >= 1)


def ring_position(slot: Int, position: Int, window: int) -> Int:
    """Token that ring entry `slot` (0..window) holds at the step at `position`; negative: none yet."""
    return position - (position - slot) % (window + 1)


def _at_least_one(dilation: int) -> int:
    """The dilation, with -1 (none) made a harmless divisor."""
    return max(dilation, 1) if isinstance(dilation, int) else dilation.clamp(min=1)
