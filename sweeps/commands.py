"""What each verb of the command line does."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ratplus.record import write_atomically
from ratplus.sweeps.compose import Composed, UsageError, compose_cells, compose_one
from ratplus.sweeps.manifest import add_cells, cell_config, check_records, plan_cells, read_manifest, sweep_folder
from ratplus.sweeps.run import EXIT_FAILED, run_cell


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Exit code of a verb.

    Raises:
        ValueError: a user's mistake, in one line.
    """
    stages = {"sweep": "evaluate", "pretrain": "pretrain", "adapt": "adapt", "evaluate": "evaluate"}
    if verb in stages:
        return _cells(verb, stages[verb], arguments)
    return {"status": _status, "report": _report, "bench": _bench, "prepare": _prepare, "import": _import}[verb](
        arguments
    )


def _cells(verb: str, last: str, arguments: argparse.Namespace) -> int:
    if verb == "sweep" or arguments.multirun:
        cells = compose_cells(arguments.overrides, arguments.config_dir, sweep=verb == "sweep")
    else:
        cells = [compose_one(arguments.overrides, arguments.config_dir)]
    folder = sweep_folder(cells)
    for cell in cells:
        _check_accelerator(cell)
    entries = plan_cells(cells)
    check_records(folder, entries)
    add_cells(folder, folder.name, entries)
    if len(entries) == 1:
        code = _one(entries[0], folder, last)
    else:
        code = _many(entries, folder, last, cells[0])
    if last == "evaluate" and code in (0, EXIT_FAILED):
        _final_report(folder)
    return code


def _check_accelerator(cell: Composed) -> None:
    if cell.config.run.accelerator == "cuda" and not Path("/dev/nvidiactl").exists():
        import torch

        if not torch.cuda.is_available():
            raise UsageError("run.accelerator=cuda: this machine has no CUDA device; use cpu or auto")


def _one(entry: dict, folder: Path, last: str) -> int:
    """A single cell runs in this process."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    ) as bars:  # fmt: skip
        shown: dict[str, int] = {}

        def progress(stage: str, done: int, total: int, numbers: dict) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(f"{entry['model']} {entry['label']}: {stage}", total=total, note="")
            note = f"loss {float(numbers['loss']):.3f}" if "loss" in numbers else ""
            bars.update(shown[stage], completed=done, note=note)

        return run_cell(cell_config(entry), folder, last, progress, say=lambda line: console.print(line, markup=False))


def _many(entries: list[dict], folder: Path, last: str, first: Composed) -> int:
    from ratplus.sweeps.pool import Stopped, run_pool, tasks_of
    from ratplus.sweeps.show import SweepDisplay

    tasks = tasks_of(entries, last)
    launcher = first.config.launcher
    try:
        with SweepDisplay(len(tasks)) as display:
            codes = run_pool(tasks, folder, launcher.workers, launcher.threads, display.event)
    except Stopped as stop:
        print(f"ratplus: {stop}", file=sys.stderr)
        return 128 + stop.number
    failed = [task for task in tasks if task.last == last and codes[task.id] != 0]
    if failed:
        print(
            f"{len(failed)} of {len(entries)} cells failed; `ratplus status {folder}` says why, logs are in "
            f"{folder / 'logs'}; running the same command again retries them",
            file=sys.stderr,
        )
    return EXIT_FAILED if failed else 0


def _final_report(folder: Path) -> None:
    from ratplus.sweeps.status import summary, sweep_status

    cells = sweep_status(folder)
    if not any(cell["status"] == "done" for cell in cells):
        print(f"{summary(cells)}; nothing to report yet")
        return
    from ratplus.analysis.load import load_sweep
    from ratplus.analysis.report import headline, report

    paths = report(folder)
    print(headline(load_sweep(folder)))
    table = next((p for p in paths if p.suffix == ".md"), folder / "report")
    figure = next((p for p in paths if p.suffix == ".png"), None)
    print(f"{summary(cells)}; table: {table}" + (f"; figure: {figure}" if figure else ""))


def _status(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.status import print_status, sweep_status

    folder = Path(arguments.folder)
    cells = sweep_status(folder)
    print_status(folder, cells)
    return EXIT_FAILED if any(cell["status"] in ("failed", "damaged") for cell in cells) else 0


def _report(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    read_manifest(folder)
    from ratplus.analysis.report import report

    for path in report(folder):
        print(path)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads: got {arguments.threads}; it must be ≥ 1")
    if arguments.repeats < 1:
        raise UsageError(f"--repeats: got {arguments.repeats}; it must be ≥ 1")
    from ratplus.kernels.bench import bench_cpu_ops

    if arguments.json:
        # Seen now rather than after minutes of measuring.
        write_atomically(Path(arguments.json), "")
    rows = bench_cpu_ops(threads=arguments.threads, repeats=arguments.repeats)
    _print_columns(rows)
    if arguments.json:
        from ratplus.record import provenance

        content = {"provenance": provenance(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
        write_atomically(Path(arguments.json), json.dumps(content, indent=1) + "\n")
    return 0


def _print_columns(rows: list[dict]) -> None:
    """Rows of equal keys as aligned plain text, whatever the terminal's width: figures must not be cut."""
    lines = [list(rows[0]), *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


def _prepare(arguments: argparse.Namespace) -> int:
    from ratplus.data.corpus import open_corpus
    from ratplus.data.sources import prepare

    corpus = open_corpus(prepare(compose_one(arguments.overrides, arguments.config_dir).config.data))
    for facts in corpus.manifest["splits"].values():
        print(f"{corpus.folder / facts['file']}: {facts['tokens']} tokens, {facts['documents']} documents")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from ratplus.checkpoint import load_official, save

    if arguments.max_len < 1:
        raise UsageError(f"--max-len: got {arguments.max_len}; it must be ≥ 1")
    model = load_official(arguments.checkpoint, d_head=arguments.d_head, max_len=arguments.max_len)
    folder = save(model, arguments.folder)
    count = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {count} parameters, recurrence {'on' if model.config.recurrence else 'off'}")
    return 0
