"""Running one cell in this process: threads, mirror, stages, and what its end means as an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ratplus.sweeps.define.compose import typed

EXIT_FAILED = 1
EXIT_USAGE = 2


class ProgressFile:
    """What a cell at work says of itself, for `ratplus status` and the pool: a small file, rewritten twice a second.

    Keys: stage, done, total, and loss where there is one.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._told = 0.0

    def tell(self, stage: str, done: int, total: int, numbers: dict) -> None:
        now = time.monotonic()
        if now - self._told <= 0.5 and done != total:
            return
        self._told = now
        loss = {k: float(v) for k, v in numbers.items() if k == "loss"}
        message = {"stage": stage, "done": done, "total": total}
        # Worth no fsync; the rename only keeps the reader from half a line.
        own = self.path.with_suffix(".tmp")
        try:
            own.write_text(json.dumps(message | loss))
            os.replace(own, self.path)
        except OSError:
            pass  # a full disk must not stop the work that tries to say so

    def remove(self) -> None:
        for path in (self.path, self.path.with_suffix(".tmp")):
            path.unlink(missing_ok=True)


def run_cell(plain: dict, folder: Path, last: str, progress: Callable, say: Callable[[str], None]) -> int:
    """Run a cell of a plain config up to the stage `last`; returns 0, EXIT_FAILED, EXIT_USAGE or 128 + signal.

    A failure is in the stage's record when this returns; its traceback has been said. Ranks other than 0 of torchrun
    or srun never return: what follows a cell, such as the report, is rank 0's alone.
    """
    from ratplus.records.record import code_version
    from ratplus.training.ranks import external_place

    code_version()  # of the files as they are now: they may change while we work
    config = typed(plain)
    if config.run.threads is not None:
        import torch

        torch.set_num_threads(config.run.threads)
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings
    from ratplus.sweeps.mirror.live import make_mirror

    around = Surroundings(folder, make_mirror if config.logger.wandb != "none" else None, progress, say)
    code = _exit_code(lambda: Cell(config, around).run(last), say)
    place = external_place() if config.trainer.strategy != "single" else None
    if place is not None and place.rank > 0:
        sys.exit(code)
    return code


def _exit_code(work: Callable[[], object], say: Callable[[str], None]) -> int:
    from ratplus.checkpoint.facts import CheckpointError
    from ratplus.data.corpus import CorpusError
    from ratplus.records.record import RecordError
    from ratplus.records.secrets import scrub
    from ratplus.training.errors import Interrupted, LayoutError

    try:
        work()
    except Interrupted as error:
        say(str(error))
        return 128 + error.number
    except (CheckpointError, CorpusError, LayoutError, RecordError) as error:
        say(scrub(f"{type(error).__name__}: {error}"))
        return EXIT_USAGE
    except OSError as error:
        say(scrub(f"{type(error).__name__}: {error}"))  # the disk's fault, not the code's: the record has the traceback
        return EXIT_FAILED
    except Exception as error:
        print(scrub(traceback.format_exc()), file=sys.stderr, flush=True)
        say(scrub(f"{type(error).__name__}: {error}"))
        return EXIT_FAILED
    return 0
