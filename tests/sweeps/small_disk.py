"""A shell script on a file system of its own, whose lines that begin with `ratplus` run in forks of the tests' server.

Started with `warm_server().fork`, so that no command imports torch again.
"""

import ctypes
import os
import shlex
import subprocess
import sys
from pathlib import Path

import forked_command

# Of sched.h; Python has os.unshare from 3.12 on.
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000


def enter_namespace() -> None:
    """Become root of a private namespace, as `unshare --map-root-user --mount` does: mounts are seen by nobody else."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | _NEW_USERS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "disk"], check=True)


def main() -> int | None:
    """Run the lines that stand in sys.argv; what follows a command of ratplus is `code` and its exit code, printed."""
    enter_namespace()
    for line in sys.argv[1:]:
        words = shlex.split(line)
        if words[0] != "ratplus":
            subprocess.run(["sh", "-c", line], check=True)
            continue
        pid = os.fork()
        if pid == 0:
            sys.argv = words
            return forked_command.main()
        print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0
