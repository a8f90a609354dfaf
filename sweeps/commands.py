"""What each verb of the command line does."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.config_run import LoggerSection
from ratplus.sweeps.compose import Composed, UsageError, compose_cells, compose_one
from ratplus.sweeps.manifest import add_cells, check_records, plan_cells, read_manifest, sweep_folder
from ratplus.sweeps.run import EXIT_FAILED


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Exit code of a verb.

    Raises:
        ValueError: a user's mistake, in one line.
    """
    stages = {"sweep": "evaluate", "pretrain": "pretrain", "adapt": "adapt", "sft": "sft", "evaluate": "evaluate"}
    if verb in stages:
        return _cells(verb, stages[verb], arguments)
    verbs = {
        "generate": _generate,
        "status": _status,
        "plan": _plan,
        "show": _show,
        "report": _report,
        "sync": _sync,
        "bench": _bench,
        "prepare": _prepare,
        "import": _import,
        "export": _export,
    }
    return verbs[verb](arguments)


def _cells(verb: str, last: str, arguments: argparse.Namespace) -> int:
    if verb == "sweep" or arguments.multirun:
        cells = compose_cells(arguments.overrides, arguments.config_dir, sweep=verb == "sweep")
    else:
        cells = [compose_one(arguments.overrides, arguments.config_dir)]
    if last == "sft" and not all(cell.config.train.sft.steps for cell in cells):
        raise UsageError(
            "train.sft.steps: got 0, so there is no stage `sft`; set it, and train.sft.tasks, or use adapt"
        )
    folder = sweep_folder(cells)
    if cells[0].config.dry_run:
        from ratplus.sweeps.dry_run import print_plan

        print_plan(folder, cells, last)
        return 0
    for cell in cells:
        _check_accelerator(cell)
    if cells[0].config.logger.wandb == "online":
        from ratplus.sweeps.wandb_mirror import warn_without_key

        warn_without_key(folder)
    entries = plan_cells(cells)
    check_records(folder, entries)
    add_cells(folder, folder.name, entries)
    from ratplus.sweeps.launch import launch

    ended = launch(entries, folder, last, cells[0].config)
    if last == "evaluate" and ended.complete and ended.code in (0, EXIT_FAILED):
        _final_report(folder, cells[0].config.logger)
    return ended.code


def _check_accelerator(cell: Composed) -> None:
    # The machine that submits jobs needs no GPU of its own.
    here = cell.config.launcher.kind == "local"
    if here and cell.config.run.accelerator == "cuda" and not Path("/dev/nvidiactl").exists():
        import torch

        if not torch.cuda.is_available():
            raise UsageError("run.accelerator=cuda: this machine has no CUDA device; use cpu or auto")


def _final_report(folder: Path, logger: LoggerSection) -> None:
    from ratplus.analysis.load import read_sweep
    from ratplus.sweeps.status import summary

    sweep = read_sweep(folder)
    counts = summary(sweep.frame["status"])
    if not sweep.frame["status"].eq("done").any():
        print(f"{counts}; nothing to report yet")
        return
    from ratplus.analysis.report import headline, report
    from ratplus.sweeps.reproduce import reproducer

    paths = report(folder, sweep=sweep, reproduce=reproducer(len(sweep.entries)))
    if logger.wandb != "none":
        from ratplus.sweeps.wandb_mirror import mirror_report

        mirror_report(folder, logger)
    print(headline(sweep.frame))
    table = next((p for p in paths if p.suffix == ".md"), folder / "report")
    figure = next((p for p in paths if p.suffix == ".png"), None)
    print(f"{counts}; table: {table}" + (f"; figure: {figure}" if figure else "") + f"; page: {paths[-1]}")


def _status(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.status import SweepView
    from ratplus.sweeps.status_view import exit_code, print_json, print_status, watch

    folder = Path(arguments.folder)
    if arguments.watch is not None:
        if arguments.json:
            raise UsageError("--watch and --json: choose one; a script can ask for --json again")
        if arguments.watch <= 0:
            raise UsageError(f"--watch: got {arguments.watch:g}; it must be > 0 seconds")
        return watch(folder, arguments.watch)
    view = SweepView(folder)
    print_json(view) if arguments.json else print_status(view)
    return exit_code(view)


def _plan(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.plan import print_plan

    print_plan(arguments)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.generate_text import run as generate

    return generate(arguments.words)


def _show(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.show_record import show

    show(arguments.id, arguments.folder, arguments.json)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from ratplus.analysis.compare import compare
    from ratplus.analysis.report import report
    from ratplus.sweeps.reproduce import reproducer

    folders = [Path(folder) for folder in arguments.folder]
    manifests = [read_manifest(folder) for folder in folders]
    if len(folders) > 2:
        raise UsageError(f"report: got {len(folders)} folders; give one sweep folder, or two to compare")
    if len(folders) == 2:
        if arguments.reference or arguments.gates:
            raise UsageError("--reference and --gates: of one sweep folder, not of a comparison")
        paths = compare(*folders)
    else:
        if arguments.gates:
            from ratplus.sweeps.measure_gates import measure_sweep_gates

            measure_sweep_gates(folders[0])
        reproduce = reproducer(len(manifests[0]["cells"]))
        paths = report(folders[0], reference=arguments.reference, reproduce=reproduce)
    for path in paths:
        print(path)
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.wandb_sync import sync

    return sync(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.bench import bench

    return bench(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.prepare import run_prepare

    return run_prepare(arguments)


def _import(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.checkpoints import run_import

    return run_import(arguments)


def _export(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.checkpoints import run_export

    return run_export(arguments)
