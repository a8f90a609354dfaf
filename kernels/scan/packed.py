"""Which of the recurrence's results a pattern keeps for ever: sinks and dilated positions, packed into rows."""

import torch
from torch import Tensor

from ratplus.kernels.attention.patterns import Setting, head_patterns, on_device

Keep = tuple[Setting, Setting]


def keep_lists(keep: Keep, start: int, heads: int) -> tuple[list[int], list[int]]:
    """(dilations, sinks), one value a head each, dilation -1 for none. Raises ValueError if keep is no pattern."""
    if not isinstance(keep, tuple | list) or len(keep) != 2:
        raise ValueError(f"gated_scan: keep is {keep!r}; it must be (dilation, sinks)")
    if on_device(*keep):
        raise ValueError(
            "gated_scan: keep decides the shape of the result, so it can't be read from a tensor on a device or in a "
            "traced graph; give (dilation, sinks) as ints or lists of ints"
        )
    if isinstance(start, bool) or not isinstance(start, int | torch.SymInt) or start < 0:
        raise ValueError(f"gated_scan: start is {start!r}; it must be the first token's position, 0 or more")
    patterns = head_patterns(keep[0], 0, keep[1], heads)
    return [pattern.dilation for pattern in patterns], [pattern.sinks for pattern in patterns]


def kept_counts(dilation: int, sinks: int, start: int, length: int) -> tuple[int, int]:
    """How many of the positions start .. start + length - 1 are sinks, and how many are dilated but no sinks."""
    some = min(max(sinks - start, 0), length)
    dilated = (start + length) // dilation - max(start, sinks) // dilation if dilation >= 1 else 0
    return some, max(dilated, 0)


def row_count(dilations: list[int], sinks: list[int], start: int, length: int) -> int:
    """Rows of the packed result: those of the head that keeps most."""
    return max(sum(kept_counts(*pattern, start, length)) for pattern in zip(dilations, sinks))


def kept_steps(dilation: int, sinks: int, start: int, length: int) -> list[int]:
    """The kept positions minus start, in order."""
    some, dilated = kept_counts(dilation, sinks, start, length)
    first = (max(start, sinks) // dilation + 1) * dilation - 1 - start if dilated else 0
    return [*range(some), *(first + n * dilation for n in range(dilated))]


def pack(x: Tensor, dilations: list[int], sinks: list[int], start: int) -> Tensor:
    """The kept rows of x [B, H, T, d]: [B, H, rows, d]; zeros where a head keeps fewer than another."""
    length = x.shape[2]
    out = x.new_zeros(*x.shape[:2], row_count(dilations, sinks, start, length), x.shape[3])
    for head, pattern in enumerate(zip(dilations, sinks)):
        steps = kept_steps(*pattern, start, length)
        out[:, head, : len(steps)] = x[:, head, steps]
    return out
