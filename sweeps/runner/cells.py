"""From composed cells to the report: what `ratplus sweep`, pretrain, adapt, sft and evaluate do."""

from __future__ import annotations

from pathlib import Path

from ratplus.config.run import LoggerSection
from ratplus.records.manifest import Entry
from ratplus.stages.store import check_store
from ratplus.sweeps.define.compose import Composed, compose_cells, compose_one
from ratplus.sweeps.define.manifest import add_cells, check_records, plan_cells, sweep_folder
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.cell import EXIT_FAILED


def run_words(overrides: list[str], config_dir: str | None, multirun: bool, last: str) -> int:
    """Compose one cell, or with `multirun` several, and run them up to the stage `last`; returns the exit code."""
    if multirun:
        return run_composed(compose_cells(overrides, config_dir, sweep=False), last)
    return run_composed([compose_one(overrides, config_dir)], last)


def run_composed(cells: list[Composed], last: str) -> int:
    """Run these cells, as one sweep, up to the stage `last`; returns the exit code."""
    if last == "sft" and not all(cell.config.train.sft.steps for cell in cells):
        raise UsageError(
            "train.sft.steps: got 0, so there is no stage `sft`; set it, and train.sft.tasks, or use adapt"
        )
    folder = sweep_folder(cells)
    if cells[0].config.dry_run:
        from ratplus.sweeps.views.dry_run import print_dry_run

        print_dry_run(folder, cells, last)
        return 0
    entries = planned(cells, folder)
    add_cells(folder, folder.name, entries)
    from ratplus.sweeps.launch.launch import launch

    ended = launch(entries, folder, last, cells[0].config)
    if last == "evaluate" and ended.complete and ended.code in (0, EXIT_FAILED):
        final_report(folder, cells[0].config.logger)
    return ended.code


def planned(cells: list[Composed], folder: Path) -> list[Entry]:
    """The manifest entries of cells that may run in this folder; their corpora are prepared, nothing else is written.

    Raises:
        UsageError, ValueError: a cell that could not run, or a folder that holds records under ids not theirs.
    """
    for cell in cells:
        _check_accelerator(cell)
        check_store(cell.config.run.store, folder)
    if cells[0].config.logger.wandb == "online":
        from ratplus.sweeps.mirror.live import warn_without_key

        warn_without_key(folder)
    entries = plan_cells(cells)
    check_records(folder, entries)
    return entries


def _check_accelerator(cell: Composed) -> None:
    # The machine that submits jobs needs no GPU of its own.
    here = cell.config.launcher.kind == "local"
    if here and cell.config.run.accelerator == "cuda" and not Path("/dev/nvidiactl").exists():
        import torch

        if not torch.cuda.is_available():
            raise UsageError("run.accelerator=cuda: this machine has no CUDA device; use cpu or auto")


def final_report(folder: Path, logger: LoggerSection) -> None:
    """Write the report of a sweep folder, and print its first sentence and where it lies."""
    from ratplus.analysis.frame.load import read_sweep
    from ratplus.sweeps.views.sweep_view import summary

    sweep = read_sweep(folder)
    counts = summary(sweep.frame["status"])
    if not sweep.frame["status"].eq("done").any():
        print(f"{counts}; nothing to report yet")
        return
    from ratplus.analysis.report import headline, report
    from ratplus.sweeps.define.reproduce import reproducer

    paths = report(folder, sweep=sweep, reproduce=reproducer(len(sweep.entries)))
    if logger.wandb != "none":
        from ratplus.sweeps.mirror.live import mirror_report

        mirror_report(folder, logger)
    print(headline(sweep.frame))
    table = next((p for p in paths if p.suffix == ".md"), folder / "report")
    figure = next((p for p in paths if p.suffix == ".png"), None)
    print(f"{counts}; table: {table}" + (f"; figure: {figure}" if figure else "") + f"; page: {paths[-1]}")
