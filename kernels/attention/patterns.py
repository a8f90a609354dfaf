"""Sparsity patterns as plain integers: validation, per-head grouping and the sorted list of far keys."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Setting = int | None | Tensor | Sequence[int]


@dataclass(frozen=True)
class HeadPattern:
    """What a query at position t sees: p <= t and (p < sinks or t - p <= window or (p + 1) % dilation == 0).

    dilation -1 means that nothing dilated is kept.
    """

    dilation: int
    window: int
    sinks: int

    @property
    def is_nothing(self) -> bool:
        """Whether a query sees itself alone."""
        return self.dilation == -1 and self.window == 0 and self.sinks == 0

    def is_dense(self, length: int) -> bool:
        """Whether every earlier token is visible in a sequence of `length` tokens."""
        return self.dilation == 1 or self.window >= length - 1 or self.sinks >= length

    def far_slices(self, length: int) -> list[slice]:
        """Positions of sinks, then of dilated keys that are no sinks: together a sorted list without duplicates."""
        slices = [slice(0, min(self.sinks, length), 1)]
        if self.dilation >= 1:
            first = (self.sinks // self.dilation + 1) * self.dilation - 1
            if first < length:
                slices.append(slice(first, length, self.dilation))
        return [s for s in slices if s.stop > s.start]

    def far_length(self, length: int) -> int:
        """How many keys `far_slices` names."""
        return sum(len(range(s.start, s.stop, s.step)) for s in self.far_slices(length))


def head_patterns(dilation: Setting, window: Setting, sinks: Setting, heads: int) -> list[HeadPattern]:
    """One pattern for every head of keys, from ints (all alike) or from int tensors or sequences of length `heads`.

    Raises ValueError that names the setting, what was given and what is allowed.
    """
    columns = (
        per_head("dilation", -1 if dilation is None else dilation, heads),
        per_head("window", window, heads),
        per_head("sinks", sinks, heads),
    )
    patterns = [HeadPattern(*row) for row in zip(*columns, strict=True)]
    for pattern in set(patterns):
        if pattern.dilation < 1 and pattern.dilation != -1:
            raise ValueError(f"dilation is {pattern.dilation}; it must be at least 1, or None (or -1) for no dilation")
        if pattern.window < 0 or pattern.sinks < 0:
            raise ValueError(f"window is {pattern.window} and sinks is {pattern.sinks}; both must be 0 or more")
    return patterns


def per_head(name: str, value: Setting, heads: int) -> list[int]:
    """A setting as one int for each of `heads` heads. Raises ValueError for anything else."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(f"{name} is a tensor of {value.dtype}; it must hold integers (int32)")
        value = value.tolist()
    if isinstance(value, bool) or not isinstance(value, int | Sequence) or isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be an int, or one int for each of the {heads} heads")
    if isinstance(value, int):
        return [value] * heads
    if len(value) != heads or not all(isinstance(item, int) for item in value):
        raise ValueError(f"{name} is {value!r}; it must hold one int for each of the {heads} heads")
    return list(value)


def group_heads(patterns: list[HeadPattern]) -> dict[HeadPattern, list[int]]:
    """Heads that share a pattern, in order of first appearance."""
    groups: dict[HeadPattern, list[int]] = {}
    for head, pattern in enumerate(patterns):
        groups.setdefault(pattern, []).append(head)
    return groups


def pattern_tensors(
    dilation: Setting, window: Setting, sinks: Setting, heads: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The settings as contiguous int32 [heads] tensors on `device`; those that are there already aren't read."""
    return (
        int_tensor(-1 if dilation is None else dilation, heads, device),
        int_tensor(window, heads, device),
        int_tensor(sinks, heads, device),
    )


def int_tensor(value: Setting, heads: int, device: torch.device) -> Tensor:
    """A setting as a contiguous int32 [heads] tensor on `device`; one that is there already isn't read."""
    if isinstance(value, int):
        return torch.full((heads,), value, dtype=torch.int32, device=device)
    return torch.as_tensor(value, dtype=torch.int32, device=device).contiguous()


def on_device(*settings: Setting) -> bool:
    """Whether reading some setting would make the host wait for a device, or break a graph that is being traced."""
    tensors = [x for x in settings if isinstance(x, Tensor)]
    return len(tensors) > 0 and (torch.compiler.is_compiling() or any(x.device.type != "cpu" for x in tensors))


def grouping(q: Tensor, k: Tensor) -> dict:
    """What torch's SDPA must be told where q has more heads than k; it makes no copies of the keys either."""
    return {} if q.shape[1] == k.shape[1] else {"enable_gqa": True}
