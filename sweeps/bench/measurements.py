"""What `ratplus bench kernels`, model and train measure: options checked, models found, nothing measured yet.

Each function takes the words behind the benchmark's name and the parsed options of the verb, and raises a ValueError of
one line for a user's mistake, so that none shows only after minutes of measuring.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ratplus.bench.settings import BenchSettings, settings_of
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.pattern import PatternMap
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError

# Called with (progress, save): lines for the screen, and the result so far after each step. Returns the result.
Measure = Callable[[Callable[[str], None], Callable[[dict], None]], dict]

# Options of models alone.
_OF_MODELS = ("pattern", "batch", "context", "new_tokens", "memory_gb", "prefill_tokens", "vocab_size", "dtype")


def prepare_kernels(models: list[str], arguments: argparse.Namespace) -> Measure:
    """Check the options; returns the function that measures the operators."""
    if models:
        raise ValueError(f"bench kernels: takes no models, got {models[0]}; models are for `ratplus bench model`")
    for name in _OF_MODELS:
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: is for `ratplus bench model`; kernels have fixed shapes")
    given: dict[str, Any] = {
        "threads": arguments.threads, "repeats": arguments.repeats, "budget_s": arguments.budget,
        "seconds": arguments.seconds, "device": _device(arguments.device),
    }  # fmt: skip
    common = BenchSettings(**{key: value for key, value in given.items() if value is not None})  # checks their values

    from ratplus.kernels.bench.cases import CPU_SHAPES, Shapes
    from ratplus.kernels.bench.run import bench_ops
    from ratplus.kernels.bench.timing import check_device

    check_device(common.device)
    shapes = Shapes() if common.device == "cuda" else CPU_SHAPES
    shapes = replace(shapes, repeats=arguments.repeats or shapes.repeats, budget_s=arguments.budget or shapes.budget_s)

    def measure(progress: Callable, save: Callable) -> dict:
        return bench_ops(shapes, threads=common.threads, seconds=common.seconds, progress=progress, save=save)

    return measure


def prepare_models(names: list[str], arguments: argparse.Namespace) -> Measure:
    """Check the options and find the models; returns the function that measures them."""
    if not names:
        raise ValueError(
            "bench model: give one or more models: a name of conf/model such as ratplus_tiny, a folder with a model, "
            "or a shape such as ratplus-24x2048x128"
        )
    settings = settings_of(arguments, _device(arguments.device))

    from ratplus.bench.models import bench_models, check

    subjects = [_subject(name, settings, arguments.vocab_size) for name in names]
    check(subjects, settings)
    return lambda progress, save: bench_models(subjects, settings, progress=progress, save=save)


def prepare_training(names: list[str], arguments: argparse.Namespace) -> Measure:
    """Check the options and find the models; returns the function that measures their training steps."""
    for name in ("pattern", "new_tokens", "memory_gb", "prefill_tokens"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: is for `ratplus bench model`, not train")
    settings = settings_of(arguments, _device(arguments.device))
    for option, key, default in (("batch", "batches", (8,)), ("context", "contexts", (512,)),
                                 ("repeats", "repeats", 12), ("budget", "budget_s", 60.0)):  # fmt: skip
        if getattr(arguments, option) is None:
            settings = replace(settings, **{key: default})

    from ratplus.bench.train import bench_training, check_training

    subjects = [_subject(name, settings, arguments.vocab_size) for name in names or ["ratplus_tiny", "attention_tiny"]]
    check_training(settings)
    return lambda progress, save: bench_training(subjects, settings, progress=progress, save=save)


def _subject(name: str, settings: BenchSettings, vocab_size: int | None):
    """Find a model: a folder with one, a shape, or a name of conf/model. The latter two get random weights."""
    from ratplus.bench.models import Subject, dtype_of, random_model, subject_of

    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"--vocab-size: got {vocab_size}; it must be ≥ 1")
    try:
        subject = subject_of(name, settings, vocab_size)
    except ValueError as neither:
        if Path(name).is_dir() or "=" in name:
            raise
        try:
            section = compose_one([f"model={name}"]).config.model
        except UsageError as error:
            raise ValueError(f"{neither}; {error}") from None
        config = section.build(vocab_size or ByteTokenizer.vocab_size, settings.longest)
        subject = Subject(name, config, lambda: random_model(config, settings.device, dtype_of(settings)))

    return replace(subject, patterns=_named_pattern)


def _named_pattern(name: str, layers: int, heads: int) -> PatternMap:
    """Find a pattern by its label, or by its name in conf/pattern."""
    try:
        return PatternMap.from_label(name, layers, heads)
    except ValueError as no_label:
        if not name.isidentifier():
            raise
        try:
            return compose_one([f"pattern={name}"]).config.pattern.build(layers, heads)
        except UsageError as error:
            raise ValueError(f"{no_label}; {error}") from None


def _device(word: str | None) -> str:
    if word is not None:
        return word
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
