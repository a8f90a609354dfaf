"""What each verb of the command line does."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.mistakes import UsageError


def run(verb: str, arguments: argparse.Namespace) -> int:
    """Exit code of a verb.

    Raises:
        ValueError: a user's mistake, in one line.
    """
    stages = {"sweep": "evaluate", "pretrain": "pretrain", "adapt": "adapt", "sft": "sft", "evaluate": "evaluate"}
    if verb in stages:
        from ratplus.sweeps.verbs.sweep import run_cells

        return run_cells(verb, stages[verb], arguments)
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


def _status(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.status import SweepView
    from ratplus.sweeps.verbs.status_view import exit_code, print_json, print_status, watch

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
    from ratplus.sweeps.verbs.plan import print_plan

    print_plan(arguments)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.generate import run as generate

    return generate(arguments.words)


def _show(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.show import show

    show(arguments.id, arguments.folder, arguments.json)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from ratplus.analysis.compare import compare
    from ratplus.analysis.report import report
    from ratplus.sweeps.define.reproduce import reproducer

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
            from ratplus.sweeps.verbs.gates import measure_sweep_gates

            measure_sweep_gates(folders[0])
        reproduce = reproducer(len(manifests[0]["cells"]))
        paths = report(folders[0], reference=arguments.reference, reproduce=reproduce)
    for path in paths:
        print(path)
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.mirror.sync import sync

    return sync(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.bench import bench

    return bench(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.prepare import run_prepare

    return run_prepare(arguments)


def _import(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.import_export import run_import

    return run_import(arguments)


def _export(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.verbs.import_export import run_export

    return run_export(arguments)
