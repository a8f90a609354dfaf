"""Stand-ins for SLURM's commands, which only note what they are asked and answer what a test has written."""

import os
import shlex
from pathlib import Path

SLURM = ["launcher=slurm", "launcher.gpus=0"]
SECRET = "not-to-be-found-0123456789"
# $NOTES is a folder: queue (what squeue prints), config (of scontrol show config), ended-<job> (of scontrol show job),
# refuse and refuse_from (see `refuse`), unreachable (what scontrol ping says), down (squeue fails), uncancelled.
_SCRIPTS = {
    "sbatch": """
n=$(ls "$NOTES" | grep -c 'sh$')
if [ -f "$NOTES/refuse" ] && [ "$n" -ge "$(cat "$NOTES/refuse_from")" ]; then cat "$NOTES/refuse" >&2; exit 1; fi
n=$((1001 + n))
cp "$1" "$NOTES/$n.sh"
env > "$NOTES/$n.env"
echo "Submitted batch job $n"
""",
    "squeue": """
env > "$NOTES/squeue.env"
[ -f "$NOTES/down" ] && { echo "slurm_load_jobs error" >&2; exit 1; }
cat "$NOTES/queue"
""",
    "scontrol": """
case "$*" in
ping) [ -f "$NOTES/unreachable" ] && { cat "$NOTES/unreachable"; exit 1; }; echo "Slurmctld(primary) at c is UP";;
"show config") cat "$NOTES/config";;
*"show job"*) cat "$NOTES/ended-${!#}" 2>/dev/null || { echo "Invalid job id specified" >&2; exit 1; };;
*) echo "$@" >> "$NOTES/scontrol";;
esac
""",
    "scancel": 'echo "$@" >> "$NOTES/scancel"\n[ ! -f "$NOTES/uncancelled" ] || { echo no >&2; exit 1; }',
    "srun": 'while [ "$1" != "${1#-}" ]; do case "$1" in --unbuffered) shift;; *) shift 2;; esac; done\nexec "$@"',
    "sacct": 'cat "$NOTES/accounts" 2>/dev/null || { echo "Slurm accounting storage is disabled" >&2; exit 1; }',
}  # fmt: skip


def pretend_slurm(place: Path, monkeypatch) -> Path:
    """Put the commands on PATH; returns the folder of their notes. srun runs its command as task 0 of an array."""
    tools, notes = place / "tools", place / "notes"
    tools.mkdir()
    notes.mkdir()
    (notes / "queue").write_text("")
    (notes / "config").write_text("MaxArraySize            = 1001\nSchedulerParameters     = (null)\n")
    for name, lines in _SCRIPTS.items():
        (tools / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return notes


def refuse(notes: Path, text: str, after: int = 0) -> None:
    """Let sbatch refuse what comes after so many accepted submissions."""
    (notes / "refuse").write_text(text)
    (notes / "refuse_from").write_text(str(after))


def submitted_command(script: Path) -> list[str]:
    """What the script hands to srun."""
    (line,) = (line for line in script.read_text().splitlines() if line.startswith("srun "))
    return shlex.split(line)[1:]
