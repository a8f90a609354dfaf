"""What `ratplus bench model` measures, as words of a command line; torch-free."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

from ratplus.config.model import ModelConfig

DEFAULT_PATTERNS = "D1,D16,D64,D16-W256,stream-W1024-I4"
# LLaMA-2's, which the paper trained with.
PAPER_VOCABULARY = 32000

_SHAPE = re.compile(r"(?P<kind>ratplus|attention)-(?P<layers>\d+)x(?P<d_model>\d+)x(?P<d_head>\d+)(-kv(?P<kv>\d+))?")


@dataclass(frozen=True)
class BenchSettings:
    """What is measured of each model.

    Args:
        patterns: labels such as D16-W256 or layers[D1,D64], or names that a subject knows; the dense pattern is
            always measured too. None: DEFAULT_PATTERNS of a model with attention, no others of one without.
        batches: sequences at once; "max" is the largest that the memory holds, for each pattern its own.
        contexts: tokens of the prompt, and the position at which decoding is timed.
        new_tokens: decoding steps timed together.
        repeats, budget_s: timed calls of each pattern, and the seconds that they may take.
        seconds: nothing more is begun after so many; None has no limit.
        prefill_tokens: prefill is timed where batch x context is at most this.
        memory_gb: memory for weights and caches, 1e9 bytes; None: what is free.
        device, dtype: `dtype` None is bfloat16 on CUDA and float32 on a CPU.
        threads: PyTorch threads; None leaves them.

    Raises:
        ValueError: a value out of range, in one line that names the option.
    """

    patterns: tuple[str, ...] | None = None
    batches: tuple[int | str, ...] = (1,)
    contexts: tuple[int, ...] = (1024,)
    new_tokens: int = 16
    repeats: int = 7
    budget_s: float = 5.0
    seconds: float | None = None
    prefill_tokens: int = 262144
    memory_gb: float | None = None
    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None

    def __post_init__(self):
        for option, values, least in (
            ("--batch", [int(b) for b in self.batches if b != "max"], 1), ("--context", self.contexts, 1),
            ("--new-tokens", [self.new_tokens], 3), ("--repeats", [self.repeats], 1),
            ("--prefill-tokens", [self.prefill_tokens], 0),
            ("--threads", [] if self.threads is None else [self.threads], 1),
        ):  # fmt: skip
            for value in values:
                if value < least:
                    raise ValueError(f"{option}: got {value}; it must be ≥ {least}")
        limits = {"--budget": self.budget_s, "--seconds": self.seconds, "--memory-gb": self.memory_gb}
        for option, value in limits.items():
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{option}: got {value}; it must be a number > 0")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"--dtype: got {self.dtype}; allowed: float32, bfloat16")

    @property
    def longest(self) -> int:
        """Tokens that a model must take."""
        return max(self.contexts) + self.new_tokens


def split_labels(text: str) -> list[str]:
    """Labels of a comma-separated list; commas within brackets belong to a label."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def shape_of(name: str, vocab_size: int | None, max_len: int) -> ModelConfig | None:
    """The model that `ratplus-LAYERSxD_MODELxD_HEAD`, with -kvN of N heads of keys, or `attention-...` names.

    None for any other name.

    Raises ValueError for an impossible shape.
    """
    found = _SHAPE.fullmatch(name)
    if found is None:
        return None
    return ModelConfig(
        vocab_size=vocab_size or PAPER_VOCABULARY,
        layers=int(found["layers"]),
        d_model=int(found["d_model"]),
        d_head=int(found["d_head"]),
        recurrence=found["kind"] == "ratplus",
        kv_heads=None if found["kv"] is None else int(found["kv"]),
        max_len=max_len,
    )


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options of `BenchSettings`; those of other benchmarks may share their names."""
    add = parser.add_argument
    add("--pattern", metavar="LABELS", help=f"comma-separated labels (default: {DEFAULT_PATTERNS}); D1 is always added")
    add("--batch", metavar="N,...", help="sequences at once; max: as many as the memory holds (default: 1)")
    add("--context", metavar="N,...", help="prompt tokens, and the position that decoding is timed at (default: 1024)")
    add("--new-tokens", type=int, metavar="N", help="decoding steps timed together (default: 16)")
    add("--memory-gb", type=float, metavar="GB", help="memory that the maximum batch is for (default: what is free)")
    add("--prefill-tokens", type=int, metavar="N", help="no prefill of more tokens, all sequences together is timed")
    add("--vocab-size", type=int, metavar="N", help="of a model with random weights (default: bytes, or 32000)")
    add("--dtype", metavar="TYPE", help="float32 or bfloat16 (default: bfloat16 on cuda, else float32)")


def settings_of(arguments: argparse.Namespace, device: str) -> BenchSettings:
    """BenchSettings of parsed arguments; an option that isn't given keeps its default. Raises ValueError as it does."""
    given: dict[str, Any] = {
        "patterns": tuple(split_labels(arguments.pattern)) if arguments.pattern else None,
        "batches": _numbers("--batch", arguments.batch, words=("max",)),
        "contexts": _numbers("--context", arguments.context),
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
        "budget_s": arguments.budget,
        "seconds": arguments.seconds,
        "prefill_tokens": arguments.prefill_tokens,
        "memory_gb": arguments.memory_gb,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
    }
    return BenchSettings(device=device, **{name: value for name, value in given.items() if value is not None})


def _numbers(option: str, text: str | None, words: tuple[str, ...] = ()) -> tuple[int | str, ...] | None:
    if text is None:
        return None
    found = []
    for part in text.split(","):
        if not part.strip().isdigit() and part.strip() not in words:
            allowed = " or ".join(("whole numbers separated by commas", *words))
            raise ValueError(f"{option}: got {text!r}; allowed: {allowed}")
        found.append(part.strip() if part.strip() in words else int(part))
    return tuple(dict.fromkeys(found))
