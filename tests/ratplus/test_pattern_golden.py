"""What patterns with a selection show, against arrays of an independent float64 oracle (tests/golden/topk)."""

import json
from pathlib import Path

import numpy as np
import pytest

from ratplus import Pattern

FOLDER = Path(__file__).parents[1] / "golden" / "topk"
CASES = json.loads((FOLDER / "topk_golden_public.json").read_text())["cases"]
ARRAYS = np.load(FOLDER / "topk_golden_public.npz")


def pattern_of(method: str, settings: dict) -> tuple[Pattern, int | None]:
    """Pattern and prompt of a case, whose settings have the oracle's own names."""
    names = {"kind": "score", "capacity": "snap", "how": "pool"}
    fields = {names.get(name, name): value for name, value in settings.items()}
    prompt = fields.pop("prompt", None)
    return Pattern(**{"dilation": None} | fields), prompt


def rotated(x: np.ndarray) -> np.ndarray:
    """Rotary embedding of x [H, T, d], base 10000, half-split, position = row."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / 10000.0 ** (np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def recurred(logit: np.ndarray, u: np.ndarray) -> np.ndarray:
    """h_t = g h_{t-1} + (1 - g) u_t with g = sigmoid(logit)."""
    gate, state, out = 1 / (1 + np.exp(-logit)), np.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        state = gate[:, t] * state + (1 - gate[:, t]) * u[:, t]
        out.append(state)
    return np.stack(out, axis=1)


def inputs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v as attention uses them."""
    q, k, v = (ARRAYS[f"public/{name}/{x}"] for x in "qkv")
    if not CASES[name]["raw_projections"]:
        return q, k, v
    logit, k, v = (x.astype(np.float64) for x in (ARRAYS[f"public/{name}/logit"], k, v))
    return rotated(q.astype(np.float64)), rotated(recurred(logit, k)), recurred(logit, v)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("through", ["fields", "label"])
def test_masks_of_the_oracle(name, through):
    case = CASES[name]
    pattern, prompt = pattern_of(case["method"], case["settings"])
    if through == "label":
        pattern = Pattern.from_label(pattern.label)
    q, k, v = inputs(name)
    mask = pattern.visible_from(q, k, prompt)
    np.testing.assert_array_equal(mask, ARRAYS[f"public/{name}/mask"])
    assert mask.sum() == case["pairs"]
    heads, _, width = q.shape
    k, v = (np.repeat(x.astype(np.float64), heads // len(k), axis=0) for x in (k, v))
    scores = np.where(mask, q.astype(np.float64) @ k.transpose(0, 2, 1) * width**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights / weights.sum(axis=-1, keepdims=True) @ v
    np.testing.assert_allclose(out, ARRAYS[f"public/{name}/out"], atol=1e-10)


def test_the_cases_are_those_that_were_recorded():
    assert len(CASES) == 15
    assert {case["method"] for case in CASES.values()} == {"topk", "snap"}
