"""How a config refuses a value: one line with the key as a user writes it, what was given, and what is allowed."""

from __future__ import annotations

import math


def check(ok: bool, key: str, value, allowed: str) -> None:
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key}: got {value!r}; {allowed}")
