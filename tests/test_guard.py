"""The tests' own guard: nothing of the batch system, accounts and home of whoever runs them is within reach."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from guard import BATCH_COMMANDS, NOWHERE, Guard, guarded


@pytest.fixture
def login_node(tmp_path) -> dict[str, str]:
    """The environment of a user who is logged in everywhere, on a machine whose commands leave a file behind."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sbatch", "squeue", "mytool"):
        (tools / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/{name}-was-called'\n")
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:{os.defpath}", "HOME": "/home/somebody", "LANG": "C.UTF-8", "SLURM_JOB_ID": "7",
        "SBATCH_ACCOUNT": "lab", "RAY_ADDRESS": "auto", "WANDB_API_KEY": "k", "WANDB_BASE_URL": "https://w",
        "HF_TOKEN": "t", "HF_HOME": "/home/somebody/hf", "HUGGING_FACE_HUB_TOKEN": "t", "NETRC": "/home/somebody/x",
        "XDG_CONFIG_HOME": "/home/somebody/c", "https_proxy": "http://proxy:1", "RATPLUS_KERNELS": "eager",
    }  # fmt: skip


def test_a_login_node_is_out_of_reach(login_node, tmp_path):
    found = guarded(login_node, tmp_path / "guard", tmp_path / "caches")
    assert found["LANG"] == "C.UTF-8"
    assert found["RATPLUS_KERNELS"] == "eager"
    assert list(Path(found["HOME"]).iterdir()) == [Path(found["HOME"]) / ".gitconfig"]
    assert found["https_proxy"] == NOWHERE
    assert not [name for name, value in found.items() if "somebody" in value and name != "PYTHONUSERBASE"]
    prefixes = ("SLURM", "SBATCH", "RAY_", "WANDB", "HF_", "HUGGING", "NETRC", "XDG")
    assert not [name for name in found if name.startswith(prefixes)]
    for name, code in (("sbatch", 1), ("squeue", 1), ("srun", 1), ("mytool", 0)):
        done = subprocess.run([name, "-x"], env=found, capture_output=True, text=True, timeout=60)
        assert done.returncode == code
        if code:
            assert (
                done.stderr
                == f"{name}: kept away from the tests by tests/guard.py; a test that needs it brings a stand-in\n"
            )
    assert [path.name for path in tmp_path.glob("*-was-called")] == ["mytool-was-called"]
    assert (tmp_path / "guard" / "tried").read_text() == "sbatch -x\nsqueue -x\nsrun -x\n"


def test_a_stand_in_of_the_test_comes_first(login_node, tmp_path):
    found = guarded(login_node, tmp_path / "guard", tmp_path / "caches")
    found["PATH"] = f"{tmp_path / 'bin'}:{found['PATH']}"
    subprocess.run(["sbatch"], env=found, check=True, timeout=60)
    assert (tmp_path / "sbatch-was-called").exists()
    assert not (tmp_path / "guard" / "tried").exists()


def test_it_is_up(guard, monkeypatch):
    assert Path.home() != Path(pwd.getpwuid(os.getuid()).pw_dir)
    # What W&B or transformers set for itself in an earlier test of this process names no account and no server.
    own = {"WANDB_SILENT", "WANDB_SERVICE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "HF_XET_HIGH_PERFORMANCE"}
    assert not [
        name for name in os.environ if name.startswith(("SLURM_", "WANDB_", "HF_", "NETRC")) and name not in own
    ]
    assert {Path(shutil.which(command)).parent for command in BATCH_COMMANDS} == {guard.place / "stubs"}
    subprocess.run(["sbatch", "job.sh"], capture_output=True, timeout=60)
    assert guard.tried() == ["sbatch job.sh"]  # after which the guard has forgotten it, or this test would fail
    assert guard.tried() == []
    monkeypatch.setenv("PATH", guard.path_without_stubs())
    assert not any(map(shutil.which, BATCH_COMMANDS))


def test_a_download_sees_the_users_proxies_and_settings(monkeypatch):
    user = {"HOME": "/home/somebody", "https_proxy": "http://proxy:1", "PATH": os.environ["PATH"]}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(user))
        above, worker = Guard(), Guard()  # pytest, and a process of pytest-xdist, which it started
        assert os.environ["https_proxy"] == NOWHERE
        for guard in (above, worker):
            found = guard.outside()
            assert (found["HOME"], found["https_proxy"]) == (user["HOME"], user["https_proxy"])
            assert NOWHERE not in found.values()
