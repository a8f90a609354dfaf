"""One process of a sweep: runs one cell up to a stage. Started by a launcher with a job file; never by hand."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ratplus.records.reading import read_json
from ratplus.records.secrets import guard_output
from ratplus.sweeps.launch.cell import EXIT_FAILED, run_cell
from ratplus.sweeps.launch.progress import ProgressFile


def main(job_file: str) -> int:
    # SLURM sends its warning to every process of a job; only the parent acts on it, and passes it on as SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    job = read_json(job_file, follow=False)
    sys.argv = job["command"]  # so that records hold what the user ran, not how this process was started
    parent = os.getppid()
    file = ProgressFile(Path(job["progress"]))

    def progress(stage: str, done: int, total: int, numbers: dict) -> None:
        if os.getppid() != parent:
            # The sweep that started this process was killed: save and stop, since nobody watches any more.
            os.kill(os.getpid(), signal.SIGTERM)
        file.write(stage, done, total, numbers)

    return run_cell(
        job["config"], job["stages"], Path(job["folder"]), job["last"], progress,
        print_line=lambda line: print(line, flush=True),
    )  # fmt: skip


def work() -> int:
    """All that the process of a worker does, with its job file as `sys.argv[1]`; returns the exit code."""
    guard_output()  # what is printed goes into a log file
    try:
        return main(sys.argv[1])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:  # the parent shows the last line that is printed
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(work())
