"""`ratplus bench report`: how long the report of a large sweep takes, and how much memory.

A sweep of so many cells is generated in a temporary folder, with records and samples as stages write them and made-up
results; a process of its own then loads and reports it.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ratplus.config.cell import PatternSection
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.records.manifest import FORMAT, MANIFEST_FILE
from ratplus.records.record import RECORD_FILE, Metric, make_record, provenance, record_text
from ratplus.records.samples import SAMPLES_FILE
from ratplus.stages.stage_ids import plan
from ratplus.sweeps.define.collector import seldom_collected
from ratplus.sweeps.define.compose import Composed, compose_one
from ratplus.sweeps.define.manifest import entry_of, name_axes

CELLS = 10_000
# What the report of CELLS cells may take on two cores.
TARGET_SECONDS, TARGET_MEGABYTES = 60, 1000

_MODELS, _SEEDS, _CURVE_ROWS = ("attention_tiny", "ratplus_tiny"), 5, 40
# Items that an evaluation stores of each of its three suites.
_ITEMS = 32
_PATTERNS = (
    *(PatternSection(2**power, window) for power in range(7) for window in (0, 32, 64)),
    PatternSection(None, 64, 4),
)
_CORPUS = {"tokenizer": "bytes", "sha256": {"train": "0" * 64, "validation": "1" * 64}}
# One cell in so many has failed.
_FAILED = 97


def bench_report(cells: int) -> dict:
    """Measure how long it takes, and how much memory, to load and report a generated sweep of so many cells.

    Returns:
        cells; generate_seconds; seconds and cpu_seconds of load and report, imports included; megabytes, the peak of
        their process; page_megabytes of index.html; files, how many the report has.

    Raises:
        ValueError: fewer cells than one.
    """
    if cells < 1:
        raise ValueError(f"--cells: got {cells}; it must be ≥ 1")
    with tempfile.TemporaryDirectory(prefix="ratplus-bench-") as place:
        start = time.perf_counter()
        folder = generate_sweep(Path(place) / "large", cells)
        generated = time.perf_counter() - start
        return {"cells": cells, "generate_seconds": generated, **measure(folder)}


def measure(folder: Path) -> dict:
    """Load and report a sweep folder in a process of its own; returns what that took, with the keys of `bench_report`.

    Raises:
        RuntimeError: the report failed.
    """
    command = [sys.executable, "-P", "-m", "ratplus.sweeps.bench.generated_sweep", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"bench report: the report of {folder} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_bench(cells: int | None, save: Callable[[dict], None]) -> None:
    """Measure, print the result, and hand it to `save`; `cells` None takes CELLS."""
    result = bench_report(CELLS if cells is None else cells)
    save(result)
    print(
        f"{result['cells']:,} cells (generated in {result['generate_seconds']:.0f} s): loaded and reported in "
        f"{result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s of processor time), {result['megabytes']:.0f} MB at "
        f"the peak; {result['files']} files, page of {result['page_megabytes']:.1f} MB"
    )
    if result["cells"] == CELLS:
        met = result["cpu_seconds"] < TARGET_SECONDS and result["megabytes"] < TARGET_MEGABYTES
        print(f"target: {TARGET_SECONDS} s and {TARGET_MEGABYTES} MB: {'met' if met else 'missed'}")


# ---- the sweep ----


def generate_sweep(folder: Path, cells: int, words: Sequence[str] = (), corpus: dict | None = None) -> Path:
    """Write a sweep folder of models × learning rates × patterns × seeds, with records and curves of adaptation.

    The same call makes the same folder, apart from what the records say about this machine.

    Args:
        folder: where.
        cells: how many.
        words: overrides that all cells have beside these.
        corpus: `Corpus.identity` of their data; None for one that nobody has.
    """
    corpus = corpus or _CORPUS
    draw, entries = random.Random(0), []
    # A part of the provenance is enough: masking secrets in every text of 30,000 records takes minutes.
    here = {key: value for key, value in provenance().items() if key in ("git", "python", "host")}
    for number, cell in enumerate(_cells(cells, words)):
        stages = plan(cell.config, corpus, ByteTokenizer.vocab_size)
        entries.append(entry_of(cell, stages, corpus))
        loss = _loss(cell, draw)
        items = _items(loss, draw)
        failed = number % _FAILED == 0
        for stage in stages:
            path = stage.folder(folder) / RECORD_FILE
            if path.exists():
                continue  # shared with an earlier cell
            status = "failed" if failed and stage.name == "evaluate" else "done"
            record = make_record(
                stage=stage.name, config=stage.config, parent=stage.parent, status=status,
                metrics=_metrics(stage.name, items, draw) if status == "done" else {},
                timing={"seconds": 1.0, "process_peak_memory_bytes": 7.4e8}, provenance=here,
                error={"type": "RuntimeError", "message": "made up", "traceback": []} if status == "failed" else None,
            )  # fmt: skip
            path.parent.mkdir(parents=True)
            # Flushing each file to the disk would take minutes, and is no part of what is measured.
            path.write_text(record_text(record))
            if stage.name == "evaluate" and status == "done":
                path.with_name(SAMPLES_FILE).write_text(_samples(items))
            if stage.name == "adapt":
                rows = [f"{step},{4096 * step},0.001,{loss + 1 / step:.6f}" for step in range(1, _CURVE_ROWS + 1)]
                path.with_name("curve.csv").write_text("\n".join(["step,tokens,lr,loss", *rows]) + "\n")
    name_axes(entries)
    (folder / MANIFEST_FILE).write_text(json.dumps({"format": FORMAT, "name": folder.name, "cells": entries}))
    return folder


def _cells(count: int, words: Sequence[str]) -> Iterator[Composed]:
    of_model = [compose_one([f"model={model}", "pattern=dilated", *words]) for model in _MODELS]
    rates = -(-count // (len(_MODELS) * len(_PATTERNS) * _SEEDS))
    for number in range(count):
        rest, seed = divmod(number, _SEEDS)
        rest, pattern = divmod(rest, len(_PATTERNS))
        model, rate = divmod(rest, rates)
        config = of_model[model].config
        train = replace(config.train, adapt=replace(config.train.adapt, lr=1e-3 * (rate + 1)))
        yield replace(
            of_model[model], config=replace(config, train=train, pattern=_PATTERNS[pattern], seed=seed),
            axes=["model", "pattern", "seed", "train.adapt.lr"],
        )  # fmt: skip


def _loss(cell: Composed, draw: random.Random) -> float:
    dilation, rate = cell.config.pattern.dilation or 64, cell.config.train.adapt.lr * 1e3
    return 1.7 + 0.02 * rate + (0 if cell.config.model.recurrence else 0.1 * math.log2(dilation)) + draw.gauss(0, 0.01)


def _items(loss: float, draw: random.Random) -> dict[str, list[float]]:
    """Made-up values of the items of three suites; hard items are hard for all cells."""
    recall = draw.uniform(0.2, 0.9)
    return {
        "loss": [loss + 0.5 * math.sin(i) + draw.gauss(0, 0.02) for i in range(_ITEMS)],
        "recall": [min(1.0, max(0.0, recall + 0.1 * math.sin(i) + draw.gauss(0, 0.02))) for i in range(_ITEMS)],
        "cloze": [float(draw.random() < 0.6 + 0.4 * math.sin(i)) for i in range(_ITEMS)],
    }


def _samples(items: dict[str, list[float]]) -> str:
    """As `ratplus.records.samples.write_samples` writes them, without its checks, which would take minutes."""
    return "".join(
        f'{{"task": "{task}", "id": {i}, "{"loss" if task == "loss" else "accuracy"}": {value!r}}}\n'
        for task, values in items.items()
        for i, value in enumerate(values)
    )


def _metrics(stage: str, items: dict[str, list[float]], draw: random.Random) -> dict[str, Metric]:
    if stage != "evaluate":
        return {"parameters": {"value": 512_544.0, "stderr": None, "count": 1}} if stage == "pretrain" else {}
    loss, recall, cloze = (math.fsum(items[task]) / _ITEMS for task in ("loss", "recall", "cloze"))
    values = {
        "loss": (loss, 0.06), "perplexity": (math.exp(loss), 0.06 * math.exp(loss)),
        "next_token_accuracy": (0.9 - 0.22 * min(loss, 4), 0.002), "recall_accuracy": (recall, 0.012),
        "recall_accuracy_1_64": (draw.uniform(0.2, 1), 0.02), "cloze_accuracy": (cloze, 0.08),
        **{f"my_task_{task}_acc": (draw.uniform(0, 1), 0.01) for task in range(6)},
    }  # fmt: skip
    return {name: {"value": value, "stderr": error, "count": 100} for name, (value, error) in values.items()}


# ---- the process that is measured ----


def _report(folder: str) -> None:
    start = time.perf_counter()
    from ratplus.analysis.report import report

    with seldom_collected():  # as the command does
        paths = report(Path(folder))
    print(json.dumps({
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time(),
        "megabytes": peak_bytes() / 1e6,
        "page_megabytes": paths[-1].stat().st_size / 1e6,
        "files": len(paths),
    }))  # fmt: skip


def peak_bytes() -> int:
    """The peak memory of this process.

    On Linux it is read from /proc: getrusage would count the memory of the parent, of which this process was a copy.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _report(sys.argv[1])
