"""One process of a sweep: runs one cell up to a stage. Started by a launcher with a job file; never by hand."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ratplus.records.secrets import guard_output
from ratplus.sweeps.launch.cell import EXIT_FAILED, ProgressFile, run_cell


def main(job_file: str) -> int:
    # SLURM sends its warning to every process of a job; only our parent acts on it, and tells us by SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    job = json.loads(Path(job_file).read_text())
    sys.argv = job["command"]  # records tell what the user ran, not how we were started
    parent = os.getppid()
    file = ProgressFile(job["progress"])

    def progress(stage: str, done: int, total: int, numbers: dict) -> None:
        if os.getppid() != parent:
            # The sweep that started us was killed: save and stop rather than work on unseen.
            os.kill(os.getpid(), signal.SIGTERM)
        file.tell(stage, done, total, numbers)

    return run_cell(job["config"], Path(job["folder"]), job["last"], progress, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    guard_output()  # it goes into a log file
    try:
        sys.exit(main(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:  # the parent shows the last line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
