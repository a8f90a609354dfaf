"""One process of a sweep: runs one cell up to a stage. Started by a launcher with a job file; never by hand."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.process import identity
from ratplus.records.reading import read_json
from ratplus.records.secrets import guard_output
from ratplus.sweeps.launch.cell import EXIT_FAILED, run_cell
from ratplus.sweeps.launch.progress import ProgressFile
from ratplus.training.foreign_settings import shut_out


def main(job_file: str) -> int:
    # SLURM sends its warning to every process of a job; only the parent acts on it, and passes it on as SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    job = read_json(job_file, follow=False)
    # From now on this process too must have gone before somebody else may say that the job was lost.
    write_atomically(job_file, json.dumps(job | {"processes": [*job.get("processes", []), identity()]}))
    sys.argv = job["command"]  # so that records hold what the user ran, not how this process was started
    parent = os.getppid()
    file = ProgressFile(Path(job["progress"]))

    def progress(stage: str, done: int, total: int, numbers: dict) -> None:
        if os.getppid() != parent:
            # The sweep that started this process was killed: save and stop, since nobody watches any more.
            os.kill(os.getpid(), signal.SIGTERM)
        file.write(stage, done, total, numbers)

    code = run_cell(
        job["config"], job["stages"], Path(job["folder"]), job["last"], progress,
        print_line=lambda line: print(line, flush=True),
    )  # fmt: skip
    if os.getppid() != parent:
        # Nobody else tidies up, and what ended here in an orderly way was not lost.
        file.remove()
        Path(job_file).unlink(missing_ok=True)
    return code


def work() -> int:
    """All that the process of a worker does, with its job file as `sys.argv[1]`; returns the exit code."""
    shut_out()
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
