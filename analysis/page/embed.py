"""How the data of a page is embedded: columns of numbers and of repeated texts, as JSON that ends no script element."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

# Digits that a column of values and of standard errors keeps: more than any table shows, and half the bytes of all.
_DIGITS, _DIGITS_OF_ERRORS = 9, 6


def as_json(data: dict) -> str:
    """JSON without the characters that could end a script element: a template may put it into one as it is."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def repeated(texts: Iterable[str | None], names: Sequence[str] = ()) -> dict:
    """Texts as {names: the different ones, of: for each text its place among them, −1 for None}.

    Args:
        names: those that stand first, in the order in which the column sorts; the others follow as they appear.
    """
    places = {name: place for place, name in enumerate(names)}
    of = [-1 if text is None else places.setdefault(text, len(places)) for text in texts]
    return {"names": list(places), "of": of}


def values(numbers: Iterable[float], errors: bool = False) -> list:
    """Numbers for JSON: whole ones as such, null for NaN, the texts `inf` and `-inf`."""
    digits = _DIGITS_OF_ERRORS if errors else _DIGITS
    return [_value(float(number), digits) for number in numbers]


def _value(number: float, digits: int) -> float | int | str | None:
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    if number == math.floor(number) and abs(number) < 2**53:
        return int(number)
    return float(f"{number:.{digits}g}")


def packed(matrix: np.ndarray) -> dict:
    """An array as {type, data}: base64 of bytes where all are whole numbers from 0 to 255, else of 32-bit floats."""
    small = bool(((matrix >= 0) & (matrix <= 255) & (matrix == np.floor(matrix))).all())
    flat = matrix.astype("<u1" if small else "<f4")
    return {"type": "u1" if small else "f4", "data": base64.b64encode(flat.tobytes()).decode()}
