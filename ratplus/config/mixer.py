"""What mixes tokens in a block: attention, or a state of fixed size (Mamba2, Gated DeltaNet). Torch-free.

Mamba2: arXiv 2405.21060; Gated DeltaNet: arXiv 2412.06464. The published blocks differ from ours around the mixer:
here both stand where attention stands, before the same feed-forward half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ratplus.config.check import check
from ratplus.pattern import PatternMap, is_whole

ATTENTION, MAMBA2, GATED_DELTANET = "attention", "mamba2", "gated_deltanet"
MIXERS = (ATTENTION, MAMBA2, GATED_DELTANET)
TITLES = {ATTENTION: "attention", MAMBA2: "Mamba2", GATED_DELTANET: "Gated DeltaNet"}
# Tokens that the short convolution before the state sees, its own included: that of both papers.
CONVOLUTION = 4
# Keys of attention alone -> the value at which they say nothing.
_OF_ATTENTION = {
    "recurrence": False, "recurrence_chunk": None, "gate_bias": None, "kv_heads": None, "output_gate": True,
    "qkv_bias": False, "out_bias": False, "qk_norm": False, "rope_base": 10000.0, "rope_scaling": "none",
}  # fmt: skip
_MOST_STATE = 1 << 17


@dataclass(frozen=True)
class StateShape:
    """Sizes of a mixer with a state: `heads` heads, each with a state of d_state x d_head numbers.

    Attributes:
        shared: whether all heads share their key and query (Mamba2: B and C), or each has its own.
        delta: whether the state is updated by the delta rule, and so has a beta for each head and token.
    """

    heads: int
    d_head: int
    d_state: int
    shared: bool
    delta: bool

    @property
    def width(self) -> int:
        """Channels of all heads' values, and of the output's gate."""
        return self.heads * self.d_head

    @property
    def key_width(self) -> int:
        """Channels of all keys; there are as many of queries."""
        return self.d_state * (1 if self.shared else self.heads)

    @property
    def convolved(self) -> int:
        """Channels that pass the short convolution: values, keys and queries."""
        return self.width + 2 * self.key_width

    @property
    def scalars(self) -> int:
        """Numbers a token that decide decay and, with the delta rule, beta: one of each a head."""
        return self.heads * (1 + self.delta)

    @property
    def projected(self) -> int:
        """Rows of the input projection."""
        return self.width + self.convolved + self.scalars


def check_mixer(shape: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown mixer, or a key that is without effect with it.

    Args:
        shape: all keys of a ModelConfig.
    """
    mixer, d_state = shape["mixer"], shape["d_state"]
    check(mixer in MIXERS, "model.mixer", mixer, f"allowed: {', '.join(MIXERS)}")
    if mixer == ATTENTION:
        check(d_state is None, "model.d_state", d_state,
              "attention has no state; use null, or model.mixer=mamba2 or gated_deltanet")  # fmt: skip
        return
    fits = d_state is None or (is_whole(d_state) and 1 <= d_state <= _MOST_STATE)
    check(fits, "model.d_state", d_state, f"it must be a whole number ≥ 1, and ≤ {_MOST_STATE}, or null for d_head")
    for name, without in _OF_ATTENTION.items():
        told = {None: "null", True: "true", False: "false"}.get(without, without)
        check(shape[name] == without, f"model.{name}", shape[name],
              f"it is attention's, and model.mixer={mixer} has none; use {told}")  # fmt: skip


def check_dense(mixer: str, patterns: PatternMap, key: str) -> None:
    """Raises ValueError for a pattern that hides something from a mixer that looks at no keys of before.

    Args:
        key: what the pattern was given as.
    """
    if mixer == ATTENTION:
        return
    label = next((p.label for row in patterns for p in row if not p.dense), None)
    check(label is None, key, label, f"model.mixer={mixer} has no pattern: its past is a state of fixed size, in which "
          "there are no keys to leave out; use dense (D1)")  # fmt: skip
