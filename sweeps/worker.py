"""One process of a sweep: runs one cell up to a stage. Started by the pool with a job file; never by hand."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from ratplus.sweeps.run import EXIT_FAILED, run_cell


def main(job_file: str) -> int:
    job = json.loads(Path(job_file).read_text())
    parent = os.getppid()
    told = 0.0

    def progress(stage: str, done: int, total: int, numbers: dict) -> None:
        nonlocal told
        if os.getppid() != parent:
            # The sweep that started us was killed: save and stop rather than work on unseen.
            os.kill(os.getpid(), signal.SIGTERM)
        if time.monotonic() - told > 0.5 or done == total:
            told = time.monotonic()
            loss = {k: float(v) for k, v in numbers.items() if k == "loss"}
            _tell(Path(job["progress"]), {"stage": stage, "done": done, "total": total, **loss})

    return run_cell(job["config"], Path(job["folder"]), job["last"], progress, say=lambda line: print(line, flush=True))


def _tell(path: Path, message: dict) -> None:
    """Progress is worth no fsync; the rename only keeps the reader from half a line."""
    own = path.with_suffix(".tmp")
    try:
        own.write_text(json.dumps(message))
        os.replace(own, path)
    except OSError:
        pass  # a full disk must not stop the work that tries to say so


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # the pool shows the last line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
