"""Prefill and decoding of a whole model under many patterns, timed in turns; on a CPU and on CUDA.

`python -m ratplus.bench.models FILE MODEL...` needs neither Hydra nor W&B; `ratplus bench model` knows the models and
patterns of `conf/` as well. Ceilings (a large copy, a large product) are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ratplus import checkpoint
from ratplus.bench.lines import model_line, skipped_line
from ratplus.bench.measure import DENSE, Measuring
from ratplus.bench.settings import DEFAULT_PATTERNS, BenchSettings, add_arguments, settings_of, shape_of
from ratplus.checkpoint.facts import read_facts
from ratplus.config.mixer import ATTENTION
from ratplus.config.model import ModelConfig
from ratplus.kernels.bench.backends import cudnn_version
from ratplus.kernels.bench.timing import Ceilings, check_device, device_name, measure_ceilings
from ratplus.model import RATPlus
from ratplus.model.given_patterns import resolved
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically


@dataclass(frozen=True)
class Subject:
    """A model to measure: name, shape, how to make it, and what map a pattern's name means: (name, layers, heads)."""

    name: str
    config: ModelConfig
    make: Callable[[], RATPlus]
    patterns: Callable[[str, int, int], PatternMap] = PatternMap.from_label

    def maps(self, labels: Iterable[str] | None) -> dict[str, PatternMap]:
        """The dense pattern and these, by the label that a row shows; two names of one pattern are one row.

        Args:
            labels: as `BenchSettings.patterns`.

        Raises:
            ValueError: a pattern that doesn't fit the model.
        """
        if labels is None:
            labels = DEFAULT_PATTERNS.split(",") if self.config.mixer == ATTENTION else ()
        wanted = [self.patterns(name, self.config.layers, self.config.heads) for name in labels]
        for patterns in wanted:
            resolved(self.config, patterns)
        return {m.label: m for m in (PatternMap.from_label(DENSE, self.config.layers, self.config.heads), *wanted)}


def bench_models(
    subjects: Iterable[Subject],
    settings: BenchSettings,
    *,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure every model at every context, batch and pattern; JSON-ready.

    Returns {"benchmark": "model", "complete", "device", "torch", "cudnn", "threads", "dtype", "date", "ceilings",
    "settings", "rows", "skipped"}; `save` gets it after each step. A row is that of `measure.Measuring`.

    Raises:
        ValueError: a device that isn't there, a pattern that doesn't fit a model, a model that takes too few tokens.
    """
    subjects = list(subjects)
    check(subjects, settings)
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        return _bench(subjects, settings, progress, save)
    finally:
        torch.set_num_threads(before)


def check(subjects: Iterable[Subject], settings: BenchSettings) -> None:
    """Raises ValueError for what can't be measured, before anything is."""
    check_device(settings.device)
    for subject in subjects:
        subject.maps(settings.patterns)
        if subject.config.max_len < settings.longest:
            raise ValueError(
                f"{subject.name}: takes {subject.config.max_len} tokens; --context {max(settings.contexts)} and "
                f"--new-tokens {settings.new_tokens} need {settings.longest}"
            )


def random_model(config: ModelConfig, device: str, dtype: torch.dtype) -> RATPlus:
    """A model with random weights, made where it will be."""
    with torch.device(device):
        return RATPlus(config).to(dtype)


def dtype_of(settings: BenchSettings) -> torch.dtype:
    return getattr(torch, settings.dtype or ("bfloat16" if settings.device == "cuda" else "float32"))


def subject_of(name: str, settings: BenchSettings, vocab_size: int | None = None) -> Subject:
    """A model folder, or a shape such as ratplus-24x2048x128-kv4 with random weights. Raises ValueError for neither."""
    config = shape_of(name, vocab_size, settings.longest)
    if config is not None:
        return Subject(name, config, lambda: random_model(config, settings.device, dtype_of(settings)))
    if not Path(name).is_dir():
        raise ValueError(
            f"{name}: no such model; give a folder with model.safetensors and config.json, or a shape such as "
            "ratplus-24x2048x128 or attention-24x2048x128 (layers x d_model x d_head), and -kv4 for 4 heads of keys"
        )

    config, _ = read_facts(Path(name))

    def load() -> RATPlus:
        return checkpoint.load(name).to(settings.device, dtype_of(settings))

    return Subject(Path(name).resolve().name, config, load)


def empty_result(benchmark: str, settings: BenchSettings, ceilings: Ceilings) -> dict:
    """What a benchmark's JSON says before there are `rows`: of which device, with which settings and ceilings."""
    return {
        "benchmark": benchmark, "complete": False, "device": device_name(settings.device), "torch": torch.__version__,
        "cudnn": cudnn_version() if settings.device == "cuda" else None,
        "threads": torch.get_num_threads(), "dtype": str(dtype_of(settings)).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"), "ceilings": asdict(ceilings), "settings": asdict(settings),
        "rows": [], "skipped": [],
    }  # fmt: skip


def _bench(subjects: list[Subject], settings: BenchSettings, progress: Callable, save: Callable) -> dict:
    started, dtype = time.monotonic(), dtype_of(settings)
    ceilings = measure_ceilings(settings.device, dtype)
    result = empty_result("model", settings, ceilings)
    for subject in subjects:
        with torch.inference_mode():
            model, maps = subject.make().eval(), subject.maps(settings.patterns)
            measuring = Measuring(subject.name, model, settings, ceilings, result)
            for context in settings.contexts:
                for batch in settings.batches:
                    head = {"model": subject.name, "batch": batch, "context": context}
                    if settings.seconds is not None and time.monotonic() - started > settings.seconds:
                        reason = f"the {settings.seconds:g} s were used up"
                        result["skipped"].append(head | {"pattern": "all", "reason": reason})
                        continue
                    progress(f"{subject.name}, context {context}, batch {batch}")
                    rows, skipped = len(result["rows"]), len(result["skipped"])
                    measuring.at(context, batch, maps)
                    for row in result["rows"][rows:]:
                        progress(model_line(row))
                    for left in result["skipped"][skipped:]:
                        progress(skipped_line(left))
                    save(result)
        del model, measuring
    result["complete"] = True
    save(result)
    return result


def write_result(path: Path) -> Callable[[dict], None]:
    """A `save` that writes the file whole each time."""
    return lambda result: write_atomically(Path(path), json.dumps(result, indent=1) + "\n")


def main(words: list[str] | None = None) -> None:
    """`python -m ratplus.bench.models FILE MODEL... [options]`. Raises ValueError for what can't be measured."""
    parser = argparse.ArgumentParser(prog="python -m ratplus.bench.models", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON file to write, after every step")
    parser.add_argument("models", nargs="+", help="model folders, or shapes such as ratplus-24x2048x128")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--repeats", type=int, help="timed calls of each pattern (default: 7)")
    parser.add_argument("--budget", type=float, help="seconds that these may take for each pattern (default: 5)")
    parser.add_argument("--seconds", type=float, help="begin nothing more after so many seconds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    add_arguments(parser)
    arguments = parser.parse_args(words)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = settings_of(arguments, device)
    subjects = [subject_of(name, settings, arguments.vocab_size) for name in arguments.models]
    bench_models(
        subjects, settings, progress=lambda text: print(text, flush=True), save=write_result(arguments.file)
    )  # fmt: skip
    print(arguments.file)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
