"""Patterns of heads as the kernels take them: plain integers where all heads agree, else a tensor a number."""

from __future__ import annotations

from functools import lru_cache

import torch

from ratplus.pattern import Pattern


@lru_cache(maxsize=512)
def kernel_pattern(row: tuple[Pattern, ...], device: torch.device):
    """(dilation, window, sinks) as the kernels take them: ints if all heads agree, else int32 tensors [H].

    `row`: the patterns of the heads of keys.
    """
    row = tuple(p.canonical for p in row)
    if len(set(row)) == 1:
        return row[0].dilation, row[0].window, row[0].sinks
    columns = zip(*((-1 if p.dilation is None else p.dilation, p.window, p.sinks) for p in row))
    # Kept for all calls: tensors of an inference mode could not be used in training later.
    with torch.inference_mode(False):
        return tuple(torch.tensor(column, dtype=torch.int32, device=device) for column in columns)
