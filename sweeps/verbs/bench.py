"""`ratplus bench`: operators (kernels), models (model), training steps (train), reports (report), timed here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ratplus.bench.settings import BenchSettings, add_arguments, settings_of
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically
from ratplus.sweeps.verbs.text_table import columns

WHAT = ("kernels", "model", "train", "report")
EXAMPLES = [
    "ratplus bench kernels --threads 1 --json bench.json",
    "ratplus bench model ratplus_tiny attention_tiny --context 480 --batch 1,8",
    "ratplus bench model ratplus-24x2048x128 --device cuda --batch 1,64,max --pattern D16,D64-W256,hybrid_layers",
    "ratplus bench train ratplus_tiny attention_tiny --context 512 --batch 8 --threads 1",
    "ratplus bench report --cells 10000",
]
_OF_MODELS = ("pattern", "batch", "context", "new_tokens", "memory_gb", "prefill_tokens", "vocab_size", "dtype")
_SHOWN = {
    "kernels": ["op", "shape", "pattern", "candidate", "ms_p50", "ms_p20", "ms_p80", "bandwidth_fraction",
                "matmul_fraction", "peak_bytes"],
    "model": ["model", "pattern", "batch", "context", "prefill_ms_p50", "prefill_ratio", "decode_ms_p50",
              "decode_ratio", "tokens_per_second", "kv_bytes", "kv_ratio", "state_bytes", "max_batch"],
    "train": ["model", "step", "context", "batch", "step_ms_p50", "step_ms_p20", "step_ms_p80", "arl_cost",
              "arl_cost_cpu", "tokens_per_second", "mfu", "ends_ms", "dense_ms", "scan_ms", "attention_ms",
              "optimizer_ms", "data_ms", "other_ms", "data_share", "peak_bytes"],
}  # fmt: skip


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `bench`."""
    add = parser.add_argument
    add("words", nargs="*", metavar="kernels | model MODEL... | train [MODEL...] | report",
        help="kernels (the default): the operators. model: whole models, each a name of conf/model, a folder with a "
        "model, or a shape with random weights such as ratplus-24x2048x128. train: training steps of models (default: "
        "ratplus_tiny attention_tiny). report: the report of a generated sweep")  # fmt: skip
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--repeats", type=int, help="timed repetitions (default: 7; operators on cuda: 20)")
    add("--budget", type=float, help="seconds that the repetitions of one candidate may take; at least 3 are made")
    add("--seconds", type=float, help="begin nothing more after so many seconds")
    add("--json", metavar="FILE", help="also write the figures here, after every step")
    add("--report", metavar="FOLDER", help="also write tables and figures here")
    add_arguments(parser.add_argument_group("of model and train"))
    parser.add_argument_group("of report").add_argument(
        "--cells", type=int, metavar="N", help="of the generated sweep that is loaded and reported (default: 10000)"
    )


def bench(arguments: argparse.Namespace) -> int:
    """Run the verb; exit code.

    Raises:
        ValueError: a user's mistake, in one line.
    """
    what, *models = arguments.words or ["kernels"]
    if what not in WHAT:
        raise ValueError(f"bench {what}: no such benchmark; allowed: {', '.join(WHAT)}")
    if what == "report":
        return _bench_report(models, arguments)
    if arguments.cells is not None:
        raise ValueError("--cells: is for `ratplus bench report`")
    prepare = {"kernels": _prepare_kernels, "model": _prepare_models, "train": _prepare_training}[what]
    measure = prepare(models, arguments)
    for option in ("json", "report"):
        if path := getattr(arguments, option):
            _check_writable(Path(path) if option == "json" else Path(path) / "efficiency.csv", f"--{option} {path}")

    def save(result: dict) -> None:
        _save(result, arguments.json)

    result = measure(lambda text: print(text, file=sys.stderr, flush=True), save)
    _show(result, _SHOWN[what])
    if arguments.report and what == "train":
        for path in _write_table(result, Path(arguments.report)):
            print(path)
    elif arguments.report:
        from ratplus.analysis.efficiency import write_results

        for path in write_results([result], Path(arguments.report)):
            print(path)
    return 0


def _bench_report(words: list[str], arguments: argparse.Namespace) -> int:
    if words:
        raise ValueError(f"bench report: takes no models, got {words[0]}; it reports a generated sweep")
    for name, value in vars(arguments).items():
        if value is not None and name not in ("words", "cells", "json"):
            raise ValueError(f"--{name.replace('_', '-')}: not for `ratplus bench report`, which takes --cells, --json")
    if arguments.json:
        _check_writable(Path(arguments.json), f"--json {arguments.json}")
    from ratplus.sweeps.verbs.bench_report import print_bench

    print_bench(arguments.cells, lambda result: _save(result, arguments.json))
    return 0


def _save(result: dict, path: str | None) -> None:
    if path:
        from ratplus.records.record import provenance

        write_atomically(Path(path), json.dumps(result | {"provenance": provenance()}, indent=1) + "\n")


def _prepare_kernels(models: list[str], arguments: argparse.Namespace) -> Callable[..., dict]:
    if models:
        raise ValueError(f"bench kernels: takes no models, got {models[0]}; models are for `ratplus bench model`")
    for name in _OF_MODELS:
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: is for `ratplus bench model`; kernels have fixed shapes")
    common = BenchSettings(**{
        key: value for key, value in (
            ("threads", arguments.threads), ("repeats", arguments.repeats), ("budget_s", arguments.budget),
            ("seconds", arguments.seconds), ("device", _device(arguments.device)),
        ) if value is not None
    })  # fmt: skip  # raises for values out of range

    from ratplus.kernels.bench.cases import CPU_SHAPES, Shapes
    from ratplus.kernels.bench.run import bench_ops
    from ratplus.kernels.bench.timing import check_device

    check_device(common.device)
    shapes = Shapes() if common.device == "cuda" else CPU_SHAPES
    shapes = replace(shapes, repeats=arguments.repeats or shapes.repeats, budget_s=arguments.budget or shapes.budget_s)

    def measure(progress: Callable, save: Callable) -> dict:
        return bench_ops(shapes, threads=common.threads, seconds=common.seconds, progress=progress, save=save)

    return measure


def _prepare_models(names: list[str], arguments: argparse.Namespace) -> Callable[..., dict]:
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


def _prepare_training(names: list[str], arguments: argparse.Namespace) -> Callable[..., dict]:
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


def _write_table(result: dict, folder: Path) -> list[Path]:
    """All columns of the rows as CSV, those of the terminal as Markdown."""
    names = list(result["rows"][0]) if result["rows"] else _SHOWN["train"]
    shown = _SHOWN["train"]
    lines = [",".join(names), *(",".join("" if r[n] is None else str(r[n]) for n in names) for r in result["rows"])]
    table = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    table += ["| " + " | ".join(_short(row[n]) for n in shown) + " |" for row in result["rows"]]
    paths = folder / "efficiency_training.csv", folder / "efficiency_training.md"
    for path, text in zip(paths, (lines, table)):
        write_atomically(path, "\n".join(text) + "\n")
    return list(paths)


def _short(value) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _subject(name: str, settings: BenchSettings, vocab_size: int | None):
    """A model of conf/model with random weights over bytes; else a folder or a shape."""
    from ratplus.bench.models import Subject, dtype_of, random_model, subject_of
    from ratplus.data.tokenizer import ByteTokenizer
    from ratplus.sweeps.define.compose import compose_one
    from ratplus.sweeps.define.mistakes import UsageError

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
    """A label, or a name of conf/pattern."""
    from ratplus.sweeps.define.compose import compose_one
    from ratplus.sweeps.define.mistakes import UsageError

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


def _check_writable(path: Path, option: str) -> None:
    """Seen now rather than after minutes of measuring; nothing is left behind."""
    missing = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    probe = path.with_name(f".{path.name}.probe")
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        write_atomically(probe, "")
        probe.unlink()
        for folder in missing:
            folder.rmdir()
    except OSError as error:
        raise ValueError(f"{option}: cannot be written ({error.strerror or error})") from None


def _show(result: dict, names: list[str]) -> None:
    if result["rows"]:
        print(columns([{name: "-" if row[name] is None else row[name] for name in names} for row in result["rows"]]))
    for left in result["skipped"]:
        words = [str(value) for key, value in left.items() if key != "reason"]
        print(f"not measured: {' '.join(words)}: {left['reason']}")
