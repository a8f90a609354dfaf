"""The operators: gated recurrence, dilated and block attention, one-token decoding, and linear attention.

Each operator has a folder with `reference.py` (the readable truth), `eager.py` (the fast PyTorch path), `fused.py` (the
Triton kernels) and an `__init__.py` that dispatches. Torch is imported when an operator is first asked for, Triton when
a fused one first runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "block_attention", "block_decode_attention", "decode_attention", "dilated_attention", "gated_delta_rule",
    "gated_scan", "linear_attention_step", "ssd",
]  # fmt: skip

_HOMES = {
    "block_attention": "blocks",
    "block_decode_attention": "block_decode",
    "decode_attention": "decode",
    "dilated_attention": "attention",
    "gated_delta_rule": "linear_attention",
    "gated_scan": "scan",
    "linear_attention_step": "linear_attention",
    "ssd": "linear_attention",
}

if TYPE_CHECKING:
    from ratplus.kernels.attention import dilated_attention
    from ratplus.kernels.block_decode import block_decode_attention
    from ratplus.kernels.blocks import block_attention
    from ratplus.kernels.decode import decode_attention
    from ratplus.kernels.linear_attention import gated_delta_rule, linear_attention_step, ssd
    from ratplus.kernels.scan import gated_scan


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"ratplus.kernels.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ratplus.kernels' has no attribute {name!r}")
