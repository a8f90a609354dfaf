"""Keeps the tests, and every process that they start, away from the batch system, the accounts and the home folder of
whoever runs them: on a login node, `make test` must submit nothing, log in nowhere and read nobody's settings.

`conftest.py` puts it up before anything else is imported. A test that needs a batch system or a server brings a
stand-in of its own, on PATH or in the environment.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import site
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

BATCH_COMMANDS = (
    "sacct", "sacctmgr", "salloc", "sattach", "sbatch", "sbcast", "scancel", "scontrol", "sinfo", "sprio", "squeue",
    "srun", "sstat",
)  # fmt: skip
# Where jobs go, who one is, and where settings lie. Proxies are replaced.
_TAKEN = re.compile(
    r"(SLURM|SBATCH|SRUN|SQUEUE|SCANCEL|SALLOC|SINFO|SACCT|PMI|PMIX|SUBMITIT|RAY|WANDB|HF|HUGGINGFACE|HUGGING_FACE|"
    r"TRANSFORMERS|XDG)_|(NETRC|PYTHONUSERBASE|GIT_CONFIG_GLOBAL|(HTTP|HTTPS|ALL|NO)_PROXY)$",
    re.IGNORECASE,
)
# What a download needs of the user's environment, kept as JSON for the processes that pytest-xdist starts.
_OUTSIDE = "RATPLUS_TESTS_OUTSIDE"
_NETWORK = re.compile(r"(HOME|XDG_CONFIG_HOME|(HTTP|HTTPS|ALL|NO)_PROXY)$", re.IGNORECASE)
NOWHERE = "http://127.0.0.1:9"  # nothing listens there
_STUB = """#!/bin/sh
echo "${0##*/} $*" >> '%s'
echo "${0##*/}: kept away from the tests by tests/guard.py; a test that needs it brings a stand-in" >&2
exit 1
"""


def guarded(environment: Mapping[str, str], place: Path, caches: Path) -> dict[str, str]:
    """An environment for tests, made of `environment`; its files are written into the new folder `place`.

    PATH keeps every command but those of SLURM: these are stubs that fail and note that they were called. Home is an
    empty folder. Proxies lead nowhere, so that no server but this machine's own can be reached by programs that honour
    them. `caches` keeps what matplotlib and Triton make, which would cost seconds in every run.
    """
    kept = {name: value for name, value in environment.items() if not _TAKEN.match(name)}
    home, stubs = place / "home", place / "stubs"
    home.mkdir(parents=True)
    stubs.mkdir()
    for command in BATCH_COMMANDS:
        (stubs / command).write_text(_STUB % (place / "tried"))
        (stubs / command).chmod(0o755)
    # A checkout of another owner, as containers have it, is refused by git unless the user's settings allow it.
    (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    folders = [Path(folder) for folder in kept.get("PATH", os.defpath).split(os.pathsep) if folder]
    near = ["127.0.0.1", "localhost", "::1", *_own_names()]
    return kept | {
        "PATH": os.pathsep.join([str(stubs), *(str(_without_batch(f, place)) for f in folders)]),
        "HOME": str(home),
        "PYTHONUSERBASE": site.getuserbase(),  # packages that a user installed are no settings
        "MPLCONFIGDIR": str(caches / "matplotlib"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(near)),
    }


def _without_batch(folder: Path, place: Path) -> Path:
    """A folder of PATH, or if it has commands of SLURM, one of links to all others."""
    if not any((folder / command).exists() for command in BATCH_COMMANDS):
        return folder
    others = Path(tempfile.mkdtemp(prefix="path-", dir=place))
    for file in folder.iterdir():
        if file.name not in BATCH_COMMANDS:
            (others / file.name).symlink_to(file.absolute())
    return others


def _own_names() -> list[str]:
    name = socket.gethostname()
    with suppress(OSError):
        return [name, *sorted({info[4][0] for info in socket.getaddrinfo(name, None)})]
    return [name]


class Guard:
    """The environment of this process and of all that it starts is a guarded one from now on."""

    def __init__(self):
        self.place = Path(tempfile.mkdtemp(prefix="ratplus-tests-"))
        atexit.register(self._remove, os.getpid())
        caches = Path(__file__).parents[1] / ".pytest_cache" / "guard"
        inherited = os.environ.get(_OUTSIDE)
        names = filter(_NETWORK.match, os.environ)
        self._outside = json.loads(inherited) if inherited else {name: os.environ[name] for name in names}
        environment = guarded(os.environ, self.place, caches)
        os.environ.clear()
        os.environ.update(environment | {_OUTSIDE: json.dumps(self._outside)})

    def outside(self) -> dict[str, str]:
        """An environment with the user's own proxies and pip settings, for a slow test that downloads with pip."""
        return {name: value for name, value in os.environ.items() if not _NETWORK.match(name)} | self._outside

    def _remove(self, owner: int) -> None:
        if os.getpid() == owner:  # forks of this process inherit what it does at its end
            shutil.rmtree(self.place, ignore_errors=True)

    def tried(self) -> list[str]:
        """Commands of the batch system that were called since the last time this was asked, with their arguments."""
        note = self.place / "tried"
        with suppress(FileNotFoundError):
            lines = note.read_text().splitlines()
            note.unlink()
            return lines
        return []

    def path_without_stubs(self) -> str:
        """PATH of a machine that has no SLURM."""
        return os.pathsep.join(f for f in os.environ["PATH"].split(os.pathsep) if f != str(self.place / "stubs"))
