"""A real SLURM cluster of one node for tests: Debian's packages in a folder of their own, so nothing is installed.

Controller, node and munge are processes of this machine and of this user, on loopback and on free ports, with no
cgroups, no accounting and no systemd. Their commands are found only by who has `RealCluster.tools` on PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
KEPT = Path(__file__).parents[3] / ".slurm-test"  # what was fetched; some 15 MB
COMMANDS = ("sacct", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")


class NoCluster(Exception):
    """This machine cannot have one; the message says why."""


def fetch_packages(kept: Path = KEPT) -> Path:
    """The folder with the unpacked packages and what they need; fetched with apt-get the first time.

    Nothing is installed and no right is needed: apt-get fetches into a cache of its own.

    Raises:
        NoCluster: no apt-get, or it finds no such packages or no server.
    """
    root = kept / "root"
    if root.is_dir():
        return root
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NoCluster(f"no {program} here: a real SLURM is set up from Debian's or Ubuntu's packages")
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "archives"
        (cache / "partial").mkdir(parents=True)
        command = [
            "apt-get", "install", "-y", "-qq", "--no-install-recommends", "--download-only", "-o",
            "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={cache}", *PACKAGES,
        ]  # fmt: skip
        # apt reaches Debian's servers with the machine's own settings; tests/guard.py leads proxies of tests nowhere.
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        files = sorted(cache.glob("*.deb"))
        if done.returncode != 0 or not files:
            why = (done.stderr.strip().splitlines() or ["nothing was fetched"])[-1]
            raise NoCluster(f"apt-get does not fetch {' '.join(PACKAGES)}: {why} (try `apt-get update`)")
        unpacked = Path(place) / "root"
        for file in files:
            subprocess.run(["dpkg-deb", "-x", file, unpacked], check=True, timeout=60)
        kept.mkdir(exist_ok=True)
        with suppress(FileExistsError):  # another process was as fast
            shutil.copytree(unpacked, kept / f"root-{os.getpid()}", symlinks=True)
            (kept / f"root-{os.getpid()}").rename(root)
    return root


class RealCluster:
    """A running cluster of one node; a context manager.

    Attributes:
        tools: the folder of sbatch, squeue, ...; to be put on PATH.

    Args:
        cpus: that the node claims to have.
        most_in_array: SLURM's MaxArraySize.
        lines: more lines of slurm.conf.

    Raises:
        NoCluster: as `fetch_packages`; or the daemons don't start, with what they said.
    """

    def __init__(self, cpus: int = 2, most_in_array: int = 1001, lines: tuple[str, ...] = ()):
        self._root = fetch_packages()
        self._place = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
        self._cpus, self._most, self._lines = cpus, most_in_array, lines
        self._daemons: dict[str, subprocess.Popen] = {}
        self.tools = self._place / "tools"
        (libraries,) = {path.parent for path in self._root.glob("usr/lib/*/slurm-wlm")}
        self._plugins = libraries / "slurm-wlm"
        self._environment = {
            "PATH": os.defpath,
            "SLURM_CONF": str(self._place / "slurm.conf"),
            "LD_LIBRARY_PATH": f"{libraries}:{self._plugins}",
        }

    def __enter__(self) -> RealCluster:
        try:
            self._write_tools()
            self._write_settings()
            self._start_munge()
            self.start_controller()
            self._start("slurmd", "-D", "-N", "localhost", "-d", self._program("slurmstepd"))
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%T").strip() == "idle", "the node is not idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self.cancel_all()
        for name in ("slurmd", "slurmctld", "munged"):
            self._stop(name)
        shutil.rmtree(self._place, ignore_errors=True)

    # ---- for tests ----

    def run(self, command: str, *words: object) -> str:
        """What a command of SLURM prints.

        Raises:
            CalledProcessError: it failed.
        """
        done = subprocess.run(
            [self.tools / command, *map(str, words)], capture_output=True, text=True, timeout=60, check=True,
            env={"PATH": f"{self.tools}:{os.defpath}"},
        )  # fmt: skip
        return done.stdout

    def cancel_all(self) -> None:
        """End every job and wait until the queue is empty."""
        self.run("scancel", "--full", "--user", str(os.getuid()))
        self._wait(lambda: not self.run("squeue", "-h"), "jobs do not end")

    def start_controller(self) -> None:
        self._start("slurmctld", "-D", "-c")
        self._wait(lambda: "is UP" in self.run("scontrol", "ping"), "the controller does not answer")

    def stop_controller(self) -> None:
        self._stop("slurmctld")

    # ---- setting up ----

    def _program(self, name: str) -> str:
        """Debian has some of them as `slurmd-wlm`."""
        found = [*self._root.glob(f"usr/*bin/{name}-wlm"), *self._root.glob(f"usr/*bin/{name}")]
        return str(found[0])

    def _write_tools(self) -> None:
        self.tools.mkdir()
        for name in COMMANDS:
            sets = " ".join(f"{key}={shlex.quote(self._environment[key])}" for key in ("SLURM_CONF", "LD_LIBRARY_PATH"))
            (self.tools / name).write_text(f'#!/bin/sh\n{sets} exec {self._program(name)} "$@"\n')
            (self.tools / name).chmod(0o755)

    def _write_settings(self) -> None:
        place = self._place
        for name in ("state", "spool", "munge"):
            (place / name).mkdir(mode=0o700)
        key = place / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, node = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        user = _user_name()
        settings = {
            "ClusterName": "tests", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": controller,
            "SlurmdPort": node, "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "SlurmUser": user, "SlurmdUser": user, "PluginDir": self._plugins,
            "AuthType": "auth/munge", "CredType": "cred/munge",
            # A job that queues again waits until its credential has expired, which is two minutes if nothing is said.
            "AuthInfo": f"socket={place}/munge/socket,cred_expire=15",
            "StateSaveLocation": place / "state", "SlurmdSpoolDir": place / "spool",
            "SlurmctldPidFile": place / "slurmctld.pid", "SlurmdPidFile": place / "slurmd.pid",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/none", "AccountingStorageType": "accounting_storage/none",
            "GresTypes": "gpu",
            "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU_Memory", "DefMemPerCPU": 512,
            "SchedulerType": "sched/backfill", "SchedulerParameters": "sched_interval=2,bf_interval=2",
            "SlurmdParameters": "config_overrides", "ReturnToService": 2, "MaxArraySize": self._most,
            "KillWait": 5, "MinJobAge": 10,
        }  # fmt: skip
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines += [
            f"NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={self._cpus} RealMemory=64000 "
            "Gres=gpu:2 State=UNKNOWN",
            "PartitionName=long Nodes=localhost Default=YES DefaultTime=60 MaxTime=INFINITE",
            "PartitionName=short Nodes=localhost DefaultTime=1 MaxTime=2",
            *self._lines,
        ]
        (place / "slurm.conf").write_text("\n".join(lines) + "\n")
        (place / "gres.conf").write_text("Name=gpu Count=2\n")  # no device behind them: only the asking is real
        # Since 23.02 the node's daemon looks for cgroups unless this forbids it.
        (place / "cgroup.conf").write_text("CgroupPlugin=disabled\n" if self._version() >= (23, 2) else "")

    def _version(self) -> tuple[int, ...]:
        done = subprocess.run(
            [self._program("slurmctld"), "-V"], capture_output=True, text=True, env=self._environment, timeout=20
        )
        return tuple(int(part) for part in done.stdout.split()[-1].split(".")[:2])

    def _start_munge(self) -> None:
        folder = self._place / "munge"
        options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # --force: the folder for temporary files is not one that munge trusts.
        words = [f"--{option}={folder / name}" for option, name in options.items()]
        self._start("munged", "--foreground", "--force", *words)
        self._wait((folder / "socket").exists, "munge does not start")

    def _start(self, name: str, *words: str) -> None:
        with (self._place / f"{name}.log").open("a") as log:
            self._daemons[name] = subprocess.Popen(
                [self._program(name), *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._place,
                env=self._environment, start_new_session=True,
            )  # fmt: skip

    def _stop(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait(self, condition, otherwise: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(subprocess.SubprocessError):
                if condition():
                    return
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise NoCluster(f"{otherwise}; {self._last_words(ended or list(self._daemons))}")
            time.sleep(0.2)

    def _last_words(self, names: list[str]) -> str:
        found = []
        for name in names:
            with suppress(OSError):
                found.append(f"{name}: {' | '.join((self._place / f'{name}.log').read_text().splitlines()[-3:])}")
        return "; ".join(found)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name
