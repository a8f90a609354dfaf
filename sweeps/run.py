"""Running one cell in this process: threads, mirror, stages, and what its end means as an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from ratplus.sweeps.compose import typed

EXIT_FAILED = 1
EXIT_USAGE = 2


def run_cell(plain: dict, folder: Path, last: str, progress: Callable, say: Callable[[str], None]) -> int:
    """Run a cell of a plain config up to the stage `last`; returns 0, EXIT_FAILED, EXIT_USAGE or 128 + signal.

    A failure is in the stage's record when this returns; its traceback has been said.
    """
    from ratplus.checkpoint import CheckpointError
    from ratplus.data.corpus import CorpusError
    from ratplus.record import RecordError

    config = typed(plain)
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    from ratplus.stages import Cell, Surroundings
    from ratplus.sweeps.wandb_mirror import make_mirror
    from ratplus.training import Interrupted

    around = Surroundings(folder, make_mirror if config.logger.wandb != "none" else None, progress, say)
    try:
        Cell(config, around).run(last)
    except Interrupted as error:
        say(str(error))
        return 128 + error.number
    except (CheckpointError, CorpusError, RecordError) as error:
        say(f"{type(error).__name__}: {error}")
        return EXIT_USAGE
    except Exception as error:
        traceback.print_exc()
        say(f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return 0
