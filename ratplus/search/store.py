"""Measured passes on disk: one small file for each pattern map, split and model, so that a killed search loses one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ratplus.pattern import PatternMap
from ratplus.records.atomic import remove_temporaries, write_atomically
from ratplus.records.reading import read_json
from ratplus.search.damage import Values

FORMAT = 1
PROBES = "probes"


def probe_key(patterns: PatternMap, data_sha256: str, weights_sha256: str) -> str:
    """16 digits that stand for a map (as it is seen), data and weights."""
    seen = PatternMap(tuple(tuple(p.canonical for p in row) for row in patterns))
    plain = json.dumps([FORMAT, seen.to_dict(), data_sha256, weights_sha256], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


class ProbeStore:
    """Losses by (map, data, weights): `<folder>/probes/<hash>.json`.

    A damaged file counts as none, and is measured again.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder) / PROBES
        if self.folder.is_dir():
            remove_temporaries(self.folder)

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def get(self, key: str) -> tuple[Values, float] | None:
        """(losses, seconds that they took), if they are there."""
        try:
            stored = read_json(self.path(key), follow=False)
            if stored["format"] != FORMAT:
                return None
            values = {name: np.array(losses, dtype=np.float64) for name, losses in stored["loss"].items()}
            whole = bool(values) and all(v.ndim == 1 and len(v) and np.isfinite(v).all() for v in values.values())
            return (values, float(stored["seconds"])) if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, key: str, patterns: PatternMap, split: str, values: Values, seconds: float) -> None:
        said = {
            "format": FORMAT, "pattern": patterns.label, "split": split,
            "seconds": round(seconds, 4), "loss": {name: losses.tolist() for name, losses in values.items()},
        }  # fmt: skip
        write_atomically(self.path(key), json.dumps(said) + "\n")
