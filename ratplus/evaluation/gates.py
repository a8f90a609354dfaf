"""What a model's recurrence does: how long its gates remember, and how large its output is over time.

Written as `gates.json` beside an evaluation's record (`ratplus report FOLDER --gates`), for the analysis of what active
recurrence learning changed; no part of the record, since it describes the model rather than a result.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ratplus.model import RATPlus
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically

FORMAT = 1
GATES_FILE = "gates.json"
MOST_POSITIONS = 512


@torch.no_grad()
def measure_gates(model: RATPlus, patterns: PatternMap, tokens: np.ndarray, batch: int = 16) -> dict:
    """Statistics of the recurrence of a model with patterns over `tokens` (int64 [rows, T]).

    The keys, each a list over layers:
        gate_mean, gate_p10, gate_p90: of the gates g, a list over heads (over rows, positions and channels);
        memory_tokens: a list over heads: mean age in tokens of what the state holds, a_t = g_t (a_{t-1} + 1), in the
            second half of the context, where the state has had time to fill;
        key_norm, value_norm: L2 norm of the recurrence's output at each of `positions`, mean over rows and heads.
    Where a model's recurrence starts anew every L tokens (`recurrence_chunk`, which is kept too), the gates are those
    that it has learned; memory and norms are of what it does, restarts among it.

    Raises:
        ValueError: a model without recurrence.
    """
    if not model.config.recurrence:
        raise ValueError(
            "gates: the model has no recurrence (model.recurrence=false), so there are no gates to measure"
        )
    device = model.embed.weight.device
    seen: list[list[dict]] = [[] for _ in model.layers]
    handles = [
        layer.mixer.register_forward_pre_hook(lambda mixer, arguments, into=into: into.append(_look(mixer, *arguments)))
        for layer, into in zip(model.blocks, seen)
    ]
    try:
        for start in range(0, len(tokens), batch):
            model(torch.from_numpy(np.ascontiguousarray(tokens[start : start + batch])).to(device), patterns.in_prompt)
    finally:
        for handle in handles:
            handle.remove()
    rows = [min(batch, len(tokens) - start) for start in range(0, len(tokens), batch)]
    length = tokens.shape[1]
    # Evenly, so that restarts stand at the same place of every chunk; and the last.
    positions = np.union1d(np.arange(0, length, -(-length // MOST_POSITIONS)), [length - 1])
    result: dict = {
        "format": FORMAT, "rows": len(tokens), "context": length, "positions": positions.tolist(),
        "recurrence_chunk": model.config.recurrence_chunk,
    }  # fmt: skip
    for name in ("gate_mean", "gate_p10", "gate_p90", "memory_tokens", "key_norm", "value_norm"):
        of_layers = [np.average([part[name] for part in parts], axis=0, weights=rows) for parts in seen]
        norms = name.endswith("_norm")
        result[name] = [_rounded(v[positions]) if norms else v.tolist() for v in of_layers]
    return result


def write_gates(folder: Path, gates: dict) -> Path:
    """Write `<folder>/gates.json`, whole or not at all."""
    path = Path(folder) / GATES_FILE
    write_atomically(path, json.dumps(gates, allow_nan=False) + "\n")
    return path


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _look(mixer, x_BTd: Tensor, _row, rope) -> dict[str, np.ndarray]:
    """One layer's statistics over one batch: arrays over heads, and over positions for the norms."""
    _, _, k, v, logit = mixer._project(x_BTd)
    of_heads = torch.sigmoid(logit.float()).transpose(0, 1).flatten(1)
    logit, k, v = mixer._restart(logit, k, v)
    k, v, _ = mixer._recur(logit, k, v, rope)
    numbers = {
        "gate_mean": of_heads.mean(dim=1),
        "gate_p10": _quantile(of_heads, 0.1),
        "gate_p90": _quantile(of_heads, 0.9),
        "memory_tokens": _mean_age(torch.sigmoid(logit.float())),
        # Rotation keeps the norm of a key.
        "key_norm": k.float().norm(dim=-1).mean(dim=(0, 1)),
        "value_norm": v.float().norm(dim=-1).mean(dim=(0, 1)),
    }
    return {name: number.cpu().double().numpy() for name, number in numbers.items()}


def _quantile(values: Tensor, share: float) -> Tensor:
    """Along the last axis; torch.quantile refuses large inputs."""
    return values.kthvalue(max(1, round(share * values.shape[-1])), dim=-1).values


def _mean_age(gates_BHTd: Tensor) -> Tensor:
    """[H]: mean over the second half of the positions, over rows and channels."""
    length = gates_BHTd.shape[2]
    age, total = torch.zeros_like(gates_BHTd[:, :, 0]), torch.zeros_like(gates_BHTd[:, :, 0])
    for t in range(length):
        age = gates_BHTd[:, :, t] * (age + 1)
        if t >= length // 2:
            total += age
    return (total / (length - length // 2)).mean(dim=(0, 2))
