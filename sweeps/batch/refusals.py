"""What sbatch says when it refuses a job, as one line with the keys that it may be about."""

from __future__ import annotations

import re
from typing import Any

from ratplus.records.lines import plain

_MOST_CHARACTERS = 400
# What sbatch says -> keys of `launcher`. All that fit are named.
_ABOUT = (
    (r"partition", ("partition",)),
    (r"invalid account|account/partition", ("account",)),
    (r"qos", ("qos",)),
    (r"feature", ("constraint",)),
    (r"time limit|--time|invalid time", ("minutes",)),
    (r"\bgres\b|generic resource|gpu", ("gpus",)),
    (r"memory|--mem\b", ("memory_gb",)),
    (r"node configuration|node count|cpu count|processors", ("cpus", "memory_gb", "gpus", "constraint")),
    (r"array", ("array_size",)),
    (r"policy|job submit limit", ("minutes", "cpus", "gpus")),
    (r"unrecognized option|invalid option|ambiguous|license|reservation|exclude|nodelist", ("sbatch",)),
)  # fmt: skip


def refusal(error: Exception, launcher: dict[str, Any]) -> str:
    """One line on a submission that failed.

    Args:
        error: submitit's, whose text is what sbatch printed.
        launcher: its keys.
    """
    words = sbatch_words(str(error))
    if not words:
        return f"sbatch refused the jobs and said nothing ({type(error).__name__})"
    keys = dict.fromkeys(key for pattern, keys in _ABOUT if re.search(pattern, words, re.IGNORECASE) for key in keys)
    see = " ".join(f"launcher.{key}={'null' if launcher.get(key) is None else launcher[key]}" for key in keys)
    return plain(f"sbatch refused the jobs: {words}" + (f" (see {see})" if see else ""))


def sbatch_words(text: str) -> str:
    """What sbatch printed, as one line without its own name and what it says twice."""
    lines = []
    for line in text.strip().splitlines():
        line = re.sub(r"^\S*sbatch: (error: |fatal: )?", "", line.strip())
        line = line.removeprefix("Batch job submission failed: ")
        if line and not line.startswith("Try ") and line not in lines:
            lines.append(line)
    return "; ".join(lines)[:_MOST_CHARACTERS]
