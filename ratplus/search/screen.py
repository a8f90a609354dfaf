"""The screen: how much each head's own output changes under each candidate, from the dense model's inputs alone.

r[u, p] = mean over tokens of |W_o of the unit's heads (y_p - y_dense)|^2, y the gated output of attention. It needs no
pass through what follows, and so knows nothing of what the change does there: a baseline for measured damage.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor

from ratplus.pattern import Pattern
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import read_json
from ratplus.search.probe import Probes
from ratplus.search.units import Space


@torch.no_grad()
def screen(probes: Probes, space: Space) -> np.ndarray:
    """r [units, candidates] on the search split, from the store where it is there."""
    path = _path(probes, space)
    shape = (space.layers, space.kv_heads, len(space.candidates))
    heads = _stored(path, shape) if path is not None else None
    if heads is None:
        heads = np.zeros(shape)
        batches, count = probes.batches("search"), 0
        for held in batches:
            x = probes.model.embed(held.tokens)
            count += held.tokens.numel()
            for layer in range(space.layers):
                heads[layer] += _of_layer(probes, space, layer, x)
                x = probes.through(x, probes.dense, layer, layer + 1)
        heads /= count
        probes.passes += len(space.candidates) / 2  # attention without the feed-forward half
        if path is not None:
            write_atomically(path, json.dumps({"heads": heads.tolist()}) + "\n")
    return np.array([heads[unit.layer, list(unit.heads)].sum(axis=0) for unit in space.units])


def _of_layer(probes: Probes, space: Space, layer: int, x: Tensor) -> np.ndarray:
    """Sums over tokens, [heads of keys, candidates]."""
    mixer = probes.model.blocks[layer].mixer
    channels = space.group * probes.model.config.d_head
    seen: list[Tensor] = []
    handle = mixer.out_proj.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    cosines, sines = probes.model.rope()
    rope = cosines[: x.shape[1]], sines[: x.shape[1]]
    every = space.kv_heads * space.group
    found = np.zeros((space.kv_heads, len(space.candidates)))
    try:
        mixer(x, (Pattern(),) * every, rope)
        (dense,) = seen
        for index, pattern in enumerate(space.candidates):
            seen.clear()
            mixer(x, (pattern,) * every, rope)
            change = (seen[0] - dense).unflatten(-1, (space.kv_heads, channels))
            weight = mixer.out_proj.weight.unflatten(1, (space.kv_heads, channels))
            moved = torch.einsum("btgc,dgc->btgd", change, weight)
            found[:, index] = moved.double().square().sum(dim=(0, 1, 3)).cpu().numpy()
    finally:
        handle.remove()
    return found


def _path(probes: Probes, space: Space):
    if probes.store is None:
        return None
    said = json.dumps([[p.label for p in space.candidates], probes.splits["search"].sha256, probes.weights])
    return probes.store.folder / f"screen-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def _stored(path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        found = np.array(read_json(path)["heads"], dtype=np.float64)
        return found if found.shape == shape and np.isfinite(found).all() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
