"""Running one cell in this process: threads, mirror, stages, and what its end means as an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ratplus.sweeps.define.typed import typed

if TYPE_CHECKING:
    from ratplus.stages.stage_ids import Plan

EXIT_FAILED = 1
EXIT_USAGE = 2


def run_cell(
    plain: dict,
    stages: dict[str, str],
    folder: Path,
    last: str,
    progress: Callable,
    print_line: Callable[[str], None],
    print_failure: Callable[[Exception], int] | None = None,
) -> int:
    """Run a cell up to the stage `last`; returns 0, EXIT_FAILED, EXIT_USAGE or 128 + signal.

    When this returns, a failure is in the stage's record. Ranks other than 0 of torchrun or srun never return: what
    follows a cell, such as the report, is rank 0's alone.

    Args:
        plain: the cell's plain config.
        stages: ids of the cell's stages by name, as they were planned.
        folder: the sweep folder.
        progress: called with (stage name, steps done, steps in all, numbers).
        print_line: called with each line for the user.
        print_failure: tells of what went wrong, and returns the exit code. None prints it as a log needs it.
    """
    from ratplus.records.record import code_version
    from ratplus.training.ranks import external_place

    code_version()  # asked now, while the files are as they were imported: they may change while the cell runs
    config = typed(plain)
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings
    from ratplus.sweeps.mirror.live import make_mirror

    surroundings = Surroundings(folder, make_mirror if config.logger.wandb != "none" else None, progress, print_line)

    def run() -> None:
        cell = Cell(config, surroundings)
        _check_planned(cell.plan, stages)
        cell.run(last)

    code = _exit_code(run, print_line, print_failure or (lambda error: _log_failure(error, print_line)))
    place = external_place() if config.trainer.strategy != "single" else None
    if place is not None and place.rank > 0:
        sys.exit(code)
    return code


def _check_planned(found: Plan, planned: dict[str, str]) -> None:
    """Refuse to run under other ids than those that the sweep waits for, and that its parent records a death under.

    Raises:
        CorpusError: the ids differ.
    """
    from ratplus.data.corpus import CorpusError

    for stage in found:
        if planned.get(stage.name) != stage.id:
            raise CorpusError(
                f"{stage.name}: its id is {stage.id} here, and was {planned.get(stage.name)} when the sweep was "
                "planned: the corpus, the weights of model.init_from or the code changed since; run the sweep again"
            )


def _exit_code(work: Callable[[], None], print_line: Callable[[str], None], failed: Callable[[Exception], int]) -> int:
    from ratplus.training.errors import Interrupted

    try:
        work()
    except Interrupted as error:
        print_line(str(error))
        return 128 + error.number
    except Exception as error:
        return failed(error)
    return 0


def code_of(error: Exception) -> int:
    """EXIT_USAGE for what is wrong with files or settings, EXIT_FAILED for what went wrong at work."""
    from ratplus.checkpoint.facts import CheckpointError
    from ratplus.data.corpus import CorpusError
    from ratplus.records.record import RecordError
    from ratplus.training.errors import LayoutError

    return EXIT_USAGE if isinstance(error, (CheckpointError, CorpusError, LayoutError, RecordError)) else EXIT_FAILED


def _log_failure(error: Exception, print_line: Callable[[str], None]) -> int:
    """Print a failure into a log; whoever started this process shows the last line."""
    from ratplus.records.secrets import scrub
    from ratplus.training.errors import Diverged

    code = code_of(error)
    # Of files, numbers and the disk the line says all, and the record has the traceback.
    if code != EXIT_USAGE and not isinstance(error, (Diverged, OSError)):
        print(scrub("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
    print_line(scrub(f"{type(error).__name__}: {error}"))
    return code
