"""The fields of a pattern: their names, what stands in them where nothing is given, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral
from typing import TypeGuard

# What every pattern has, and has had from the start: these stand in each record and each stage's id.
STATIC = ("dilation", "window", "sinks")
# Block top-k. Where `top` is None the others mean nothing and stand at these values. In a config, `over` is called
# `pattern.blocks_of`, since `pattern.over` there is what a list of values runs over.
TOP_DEFAULTS = {
    "top": None, "block": 64, "score": "mean", "first": True, "phase": "both", "over": "all", "seed": 0,
}  # fmt: skip
# SnapKV. Where `snap` is None the others mean nothing and stand at these values.
SNAP_DEFAULTS = {"snap": None, "observe": 64, "kernel": 5, "pool": "avg"}
# Everything that depends on data: left out of a record's pattern where it is as if the key did not exist.
SELECTION = {**TOP_DEFAULTS, **SNAP_DEFAULTS}

MOST = 1 << 40  # longer than any sequence, so that counts of entries stay within 64 bits
SCORES = ("mean", "bounds", "random")
PHASES = ("both", "decode", "prefill")
OVER = ("all", "kept")
POOLS = ("avg", "max")


def is_whole(value) -> TypeGuard[int]:
    """Whether a value is a whole number, Python's or NumPy's. True and False are not, though they count as 1 and 0."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(name: str, value, least: int, why: str = "") -> int:
    """The value as an int. Raises ValueError with the key if it is not whole or too small; `why` ends the line."""
    if not is_whole(value):
        raise ValueError(f"pattern.{name}: got {value!r}; it must be a whole number ≥ {least}{why}")
    if value < least:
        raise ValueError(f"pattern.{name}: got {value}; it must be ≥ {least}{why}")
    return at_most(name, int(value))


def at_most(name: str, value: int) -> int:
    """The value. Raises ValueError with the key if it is more than MOST."""
    if value > MOST:
        raise ValueError(f"pattern.{name}: got {value}; it must be ≤ {MOST}")
    return value


def one_of(name: str, value, allowed: Sequence[str]) -> str:
    """The value, if it is one of the allowed words; else ValueError with the nearest of them."""
    if value in allowed:
        return value
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(f"pattern.{name}: got {value!r}; {hint}allowed: {', '.join(allowed)}")


def checked_top(given: dict) -> dict:
    """The fields of block top-k, checked; at their defaults if `top` is None.

    Args:
        given: the keys of TOP_DEFAULTS, and `dilation`.

    Raises:
        ValueError: a value that is not allowed.
    """
    if given["top"] is None:
        return dict(TOP_DEFAULTS)
    first = given["first"]
    if not isinstance(first, bool):
        raise ValueError(f"pattern.first: got {first!r}; allowed: true, false")
    # The query's own block is always read, and the first one too unless it is switched off.
    why = " (the query's own block and block 0 count; block 0 is not forced with pattern.first=false)" if first else ""
    found = {
        "top": whole_number("top", given["top"], 1 + first, why),
        "block": whole_number("block", given["block"], 1),
        "score": one_of("score", given["score"], SCORES),
        "first": first,
        "phase": one_of("phase", given["phase"], PHASES),
        "over": one_of("blocks_of", given["over"], OVER),
        "seed": whole_number("seed", given["seed"], 0),
    }
    if found["seed"] >= 2**31:
        raise ValueError(f"pattern.seed: got {found['seed']}; it must be ≤ 2147483647")
    if found["seed"] and found["score"] != "random":
        raise ValueError(
            f"pattern.seed: got {found['seed']} with pattern.score={found['score']}, which draws nothing; "
            "use pattern.score=random, or pattern.seed=0"
        )
    if found["over"] == "kept" and (given["dilation"] or 1) < 2:
        raise ValueError(
            f"pattern.blocks_of: got 'kept' with pattern.dilation={given['dilation']}; blocks of kept keys need a "
            "dilation ≥ 2 (without one they are blocks of all keys: all, as in top16x64)"
        )
    return found


def checked_snap(given: dict) -> dict:
    """The fields of SnapKV, checked; at their defaults if `snap` is None.

    Args:
        given: the keys of SNAP_DEFAULTS, and `dilation`, `window`, `sinks`, `top`.

    Raises:
        ValueError: a value that is not allowed, or a pattern that SnapKV is not defined with.
    """
    if given["snap"] is None:
        return dict(SNAP_DEFAULTS)
    observe = whole_number("observe", given["observe"], 1)
    least = observe + given["sinks"]
    found = {
        "snap": whole_number("snap", given["snap"], 1),
        "observe": observe,
        "kernel": whole_number("kernel", given["kernel"], 1),
        "pool": one_of("pool", given["pool"], POOLS),
    }
    if found["snap"] < least:
        raise ValueError(
            f"pattern.snap: got {found['snap']}; it must be ≥ {least}, since pattern.observe={observe} last tokens and "
            f"pattern.sinks={given['sinks']} first ones are kept in any case and count"
        )
    if found["kernel"] % 2 == 0:
        raise ValueError(f"pattern.kernel: got {found['kernel']}; it must be odd, so that the pooling is centred")
    if given["top"] is not None:
        raise ValueError(f"pattern.snap: got {found['snap']} with pattern.top={given['top']}; give one of them")
    if given["dilation"] is not None or given["window"]:
        raise ValueError(
            f"pattern.snap: got {found['snap']} with pattern.dilation={given['dilation']} and "
            f"pattern.window={given['window']}; SnapKV keeps what it selects, its observation window and sinks alone: "
            "use pattern.dilation=null and pattern.window=0"
        )
    return found
