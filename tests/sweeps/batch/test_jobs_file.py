"""jobs.json: which jobs of submitit's local executor, whose ids are numbers of processes, are still there."""

import os
import subprocess
import sys

from ratplus.sweeps.batch.jobs_file import add_jobs, live_jobs


def test_a_local_job_is_a_process_of_submitit(tmp_path):
    """Another process may have got a number that a job had before the machine started anew."""
    sleep = "import time; print(flush=True); time.sleep(100)"
    job, other = (
        subprocess.Popen([sys.executable, "-c", sleep, word], stdout=subprocess.PIPE)
        for word in ("submitit.core._submit", "something.else")
    )
    again = subprocess.Popen([sys.executable, "-c", sleep, "submitit.core._submit"], stdout=subprocess.PIPE)
    try:
        for process in (job, other, again):
            process.stdout.readline()  # its command line is that of Python now, not still ours
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        jobs = {"a" * 12: str(job.pid), "b" * 12: str(other.pid), "c" * 12: str(gone.pid)}
        jobs["d" * 12] = str(os.getpid())
        add_jobs(tmp_path, {"id": "f" * 32, "time": "", "cluster": "local", "jobs": jobs})
        live = live_jobs(tmp_path)
        assert {item: (found.id, found.state) for item, found in live.items()} == {"a" * 12: (str(job.pid), "running")}
        # Of an item that was submitted again while its first job is still there, the latest job counts.
        add_jobs(tmp_path, {"id": "e" * 32, "time": "", "cluster": "local", "jobs": {"a" * 12: str(again.pid)}})
        assert {item: found.id for item, found in live_jobs(tmp_path).items()} == {"a" * 12: str(again.pid)}
    finally:
        for process in (job, other, again):
            process.kill()
            process.communicate()
