"""How a config refuses a value: one line with the key as a user writes it, what was given, and what is allowed."""

from __future__ import annotations

import math


def check(ok: bool, key: str, value, allowed: str) -> None:
    """Raise ValueError unless `ok`; a float that is infinite or not a number is never allowed."""
    if not ok or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key}: got {value!r}; {allowed}")


def check_least(section: object, where: str, **least: float) -> None:
    """Refuse a section's values that are too small; None is the check of whoever allows it.

    Args:
        section: its attributes have the names of the keys.
        where: the key of the section, such as `eval.niah`.
        least: attribute -> its smallest value.
    """
    for name, smallest in least.items():
        value = getattr(section, name)
        check(value is None or value >= smallest, f"{where}.{name}", value, f"it must be ≥ {smallest}")
