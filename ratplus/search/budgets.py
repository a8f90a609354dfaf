"""Budgets of a search, and what patterns cost in their units: as shares of the dense model, counted by `costs`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ratplus.config.model import ModelConfig
from ratplus.costs.cost import attention_flops, decode_bytes, kv_bytes, selection_flops
from ratplus.pattern import Pattern, PatternMap
from ratplus.search.units import Choice, Space

KINDS = ("kv", "read", "flops", "latency")
UNITS = {"kv": "bytes", "read": "bytes", "flops": "FLOPs", "latency": "ms"}
_SUFFIXES = {
    "kv": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}, "read": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9},
    "flops": {"F": 1, "MF": 1e6, "GF": 1e9, "TF": 1e12}, "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}  # fmt: skip
_FORM = re.compile(r"(?P<number>\d*\.?\d+(?:e[+-]?\d+)?)(?P<suffix>[A-Za-z]*)")


@dataclass(frozen=True)
class Budget:
    """A limit: `number` is a share of the dense model's cost, or an amount in the kind's unit (bytes, FLOPs, ms).

    Attributes:
        text: as it was given.
    """

    text: str
    kind: str
    number: float
    absolute: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `kv:0.25` or `kv:64MB`. Raises ValueError: an unknown kind, or a number that is none."""
        kind, sign, rest = text.strip().partition(":")
        if kind not in KINDS or not sign:
            close = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"budget: got {text!r}; {hint}allowed: {', '.join(f'{k}:0.25' for k in KINDS)}")
        found = _FORM.fullmatch(rest.strip())
        suffixes = _SUFFIXES[kind]
        if found is None or (found["suffix"] and found["suffix"] not in suffixes):
            raise ValueError(
                f"budget: got {text!r}; after {kind}: stands a share of the dense model such as 0.25, or an amount "
                f"with its unit: {', '.join(suffixes)}"
            )
        number, absolute = float(found["number"]), bool(found["suffix"])
        if absolute:
            number *= suffixes[found["suffix"]]
        if not (0 < number < math.inf) or (not absolute and number > 1):
            allowed = "an amount > 0" if absolute else "a share > 0 and ≤ 1"
            raise ValueError(f"budget: got {text!r}; it must be {allowed} (an amount has its unit behind it)")
        return cls(text.strip(), kind, number, absolute)

    @property
    def file_name(self) -> str:
        """The budget as part of a file's name."""
        return self.text.replace(":", "-")


@dataclass(frozen=True)
class Prices:
    """Costs in one budget's kind, at the end of `length` tokens of one sequence, as shares of the dense model's.

    Keys and values count as bfloat16. kv is what keys and values take, as `kv_bytes` in every table: block metadata and
    the recurrent state are not in it. read has the block metadata that a step reads.

    Attributes:
        dense: cost of the dense model in the kind's unit.
        predict: milliseconds of a decoding step under a map; of latency alone, whose costs do not add up.
    """

    kind: str
    config: ModelConfig
    length: int
    dense: float
    predict: Callable[[PatternMap], float] | None = None

    @classmethod
    def of(
        cls, kind: str, config: ModelConfig, length: int, predict: Callable[[PatternMap], float] | None = None
    ) -> Prices:
        heads = config.layers * config.key_heads
        if kind == "latency":
            assert predict is not None
            return cls(kind, config, length, predict(uniform_map(Pattern(), config)), predict)
        return cls(kind, config, length, heads * _amount(kind, Pattern(), config, length))

    def head(self, pattern: Pattern) -> float:
        """Share of one head of keys with this pattern; of latency by what it reads, which only ranks."""
        kind = "read" if self.kind == "latency" else self.kind
        heads = self.config.layers * self.config.key_heads
        dense = _amount(kind, Pattern(), self.config, self.length)
        return _amount(kind, pattern, self.config, self.length) / dense / heads

    def map(self, patterns: PatternMap) -> float:
        """Share of a whole map."""
        if self.predict is not None:
            return self.predict(patterns) / self.dense
        rows = patterns.per_kv_head(self.config.kv_heads)
        return sum(self.head(p) for row in rows for p in row)

    def table(self, space: Space) -> np.ndarray:
        """[units, candidates]: shares of the units."""
        each = [self.head(p) for p in space.candidates]
        return np.array([[len(unit.heads) * share for share in each] for unit in space.units])

    def total(self, space: Space) -> Callable[[Choice], float] | None:
        """The true share of a choice where shares of units do not add up; else None."""
        if self.predict is None:
            return None
        return lambda choice: self.map(space.map(choice))

    def limit(self, budget: Budget) -> float:
        """The budget as a share of the dense model."""
        return budget.number / self.dense if budget.absolute else budget.number


def _amount(kind: str, pattern: Pattern, config: ModelConfig, length: int) -> float:
    """Cost of one head of keys, with the query heads that share it, in the kind's unit."""
    if kind == "kv":
        return kv_bytes(pattern, length, config.d_head)
    if kind == "read":
        return decode_bytes(pattern, length, config.d_head)
    each = attention_flops(pattern, length, config.d_head) + selection_flops(pattern, length, config.d_head)
    return config.group * each


def uniform_map(pattern: Pattern, config: ModelConfig) -> PatternMap:
    return PatternMap.uniform(pattern, config.layers, config.heads)
