"""`ratplus bench`: operators (kernels), models (model), training steps (train), reports (report), timed here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import cast

from ratplus.records.atomic import write_atomically

HELP = "time the operators (kernels) or whole models (model) under several patterns"
_BENCHMARKS = ("kernels", "model", "train", "report")
EXAMPLES = [
    "ratplus bench kernels --threads 1 --json bench.json",
    "ratplus bench model ratplus_tiny attention_tiny --context 480 --batch 1,8",
    "ratplus bench model ratplus-24x2048x128 --device cuda --batch 1,64,max --pattern D16,D64-W256,hybrid_layers",
    "ratplus bench train ratplus_tiny attention_tiny --context 512 --batch 8 --threads 1",
    "ratplus bench report --cells 10000",
]
_SHOWN = {
    "kernels": ["op", "shape", "pattern", "candidate", "ms_p50", "ms_p20", "ms_p80", "bandwidth_fraction",
                "matmul_fraction", "peak_bytes"],
    "model": ["model", "pattern", "batch", "context", "prefill_ms_p50", "prefill_ratio", "decode_ms_p50",
              "decode_ratio", "tokens_per_second", "kv_bytes", "kv_ratio", "state_bytes", "max_batch"],
    "train": ["model", "step", "context", "batch", "step_ms_p50", "step_ms_p20", "step_ms_p80", "arl_cost",
              "arl_cost_cpu", "tokens_per_second", "mfu", "ends_ms", "dense_ms", "scan_ms", "attention_ms",
              "mixer_ms", "optimizer_ms", "data_ms", "other_ms", "data_share", "peak_bytes"],
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ratplus.bench.settings import add_arguments as add_settings

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
    add_settings(parser.add_argument_group("of model and train"))
    parser.add_argument_group("of report").add_argument(
        "--cells", type=int, metavar="N", help="of the generated sweep that is loaded and reported (default: 10000)"
    )


def run(arguments: argparse.Namespace) -> int:
    what, *models = arguments.words or ["kernels"]
    if what not in _BENCHMARKS:
        raise ValueError(f"bench {what}: no such benchmark; allowed: {', '.join(_BENCHMARKS)}")
    if what == "report":
        return _bench_report(models, arguments)
    if arguments.cells is not None:
        raise ValueError("--cells: is for `ratplus bench report`")
    from ratplus.sweeps.bench.measurements import prepare_kernels, prepare_models, prepare_training

    prepare = {"kernels": prepare_kernels, "model": prepare_models, "train": prepare_training}[what]
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
        from ratplus.analysis.frame.bench_results import BenchResult

        for path in write_results([cast(BenchResult, result)], Path(arguments.report)):
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
    from ratplus.sweeps.bench.generated_sweep import print_bench

    print_bench(arguments.cells, lambda result: _save(result, arguments.json))
    return 0


def _save(result: dict, path: str | None) -> None:
    if path:
        from ratplus.records.record import provenance

        write_atomically(Path(path), json.dumps(result | {"provenance": provenance()}, indent=1) + "\n")


def _write_table(result: dict, folder: Path) -> list[Path]:
    """Write all columns of the rows as CSV, and those that the terminal shows as Markdown."""
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


def _check_writable(path: Path, option: str) -> None:
    """Make sure that a file can be written, before minutes are spent on measuring; leaves nothing behind."""
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
    from ratplus.sweeps.views.text_table import columns

    if result["rows"]:
        print(columns([{name: "-" if row[name] is None else row[name] for name in names} for row in result["rows"]]))
    for left in result["skipped"]:
        words = [str(value) for key, value in left.items() if key != "reason"]
        print(f"not measured: {' '.join(words)}: {left['reason']}")
