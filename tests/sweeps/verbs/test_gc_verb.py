"""`ratplus gc`: what nobody names goes on request; what a manifest names or somebody works on never does."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_runs import ratplus_here

from ratplus.records.lock import FolderLock
from ratplus.records.manifest import read_manifest

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"
STRAY, BUSY = "0123456789ab", "ba9876543210"


@pytest.fixture
def place(tmp_path):
    """A sweep with a stray stage of 1,000 bytes, 600 of them linked, one at work, and leftovers of a finished one."""
    sweep = tmp_path / "outputs" / "sweep"
    shutil.copytree(OLD, sweep)
    stray = sweep / "adapt" / STRAY
    stray.mkdir()
    (stray / "model.safetensors").write_bytes(b"x" * 600)
    os.link(stray / "model.safetensors", tmp_path / "elsewhere")
    (stray / "record.json").write_bytes(b"x" * 400)
    done = next((sweep / "pretrain").iterdir())
    (done / "training-7.pt").write_bytes(b"x" * 50)
    (done / ".model.safetensors.a.tmp").write_bytes(b"x" * 7)
    (done / ".lock.json.k2_x9z.tmp").write_bytes(b"x" * 3)
    (done / "model.safetensors").write_bytes(b"x" * 9)
    return tmp_path


def files(sweep: Path) -> set[str]:
    """All files but those of a beat of the lock that is just being written."""
    found = {str(path.relative_to(sweep)) for path in sweep.rglob("*") if path.is_file()}
    return {name for name in found if f"{BUSY}/.lock.json." not in name}


def test_it_tells_and_removes_on_request_alone(place):
    sweep = place / "outputs" / "sweep"
    before = files(sweep)
    with FolderLock(sweep / "adapt" / BUSY):
        for words in (["--dry-run"], []):
            done = ratplus_here(place, "gc", "outputs/sweep", *words)
            assert done.returncode == 0
            last = "4 could be removed (--remove): 1,060 bytes, of which 600 have another name (a hard link) and stay"
            assert done.stdout.splitlines()[-1] == last
            assert f"outputs/sweep/adapt/{STRAY}  (adapt {STRAY}: sweep.json does not name it)" in done.stdout
            assert BUSY not in done.stdout
            assert files(sweep) == before | {f"adapt/{BUSY}/lock.json"}
        told = json.loads(ratplus_here(place, "gc", "outputs/sweep", "--remove", "--json").stdout)
        assert (told["removed"], told["bytes"], told["frees"], len(told["unneeded"])) == (True, 1060, 460, 4)
        assert (sweep / "adapt" / BUSY / "lock.json").exists()
    gone = before - files(sweep)
    assert {name.rpartition("/")[2] for name in gone} == {
        "model.safetensors", "record.json", "training-7.pt", ".model.safetensors.a.tmp",
        ".lock.json.k2_x9z.tmp",
    }  # fmt: skip
    for cell in read_manifest(sweep)["cells"]:
        for stage, identity in cell["stages"].items():
            assert (sweep / stage / identity / "record.json").exists()
    assert next((sweep / "pretrain").glob("*/model.safetensors")).stat().st_size == 9  # weights that are named stay
    assert (place / "elsewhere").stat().st_size == 600


def test_an_added_suite_is_named(place):
    path = place / "outputs" / "sweep" / "sweep.json"
    manifest = json.loads(path.read_text())
    manifest["cells"][0]["added"] = [{"id": STRAY, "suite": "x", "eval": {}}]
    path.write_text(json.dumps(manifest))
    (place / "outputs" / "sweep" / "adapt" / STRAY).rename(place / "outputs" / "sweep" / "evaluate" / STRAY)
    assert STRAY not in ratplus_here(place, "gc", "outputs/sweep").stdout


def test_a_store_keeps_what_a_sweep_names(place):
    store = place / "store"
    sweep = place / "outputs" / "sweep"
    shutil.copytree(sweep, store, ignore=shutil.ignore_patterns("sweep.json", ".*"))
    (store / "store.json").write_text("{}")
    # Of a store whole stages are looked at, and no single files: nobody trains there.
    beside = next(store.glob("pretrain/*")) / "training-1.pt"
    beside.write_text("x")
    told = json.loads(ratplus_here(place, "gc", "store", "--sweeps", "outputs", "--json").stdout)
    assert [item["path"] for item in told["unneeded"]] == [f"store/adapt/{STRAY}"]
    assert ratplus_here(place, "gc", "store", "--sweeps", "outputs", "--remove").returncode == 0
    assert not (store / "adapt" / STRAY).exists()
    assert len(list(store.glob("*/*"))) == 5
    assert beside.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["outputs/sweep", "--dry-run", "--remove"], "--dry-run and --remove: choose one"),
        (["outputs"], "outputs: holds no sweep.json"),
        (["nowhere"], "nowhere: no such folder"),
        (["outputs/sweep", "--sweeps", "outputs"], "--sweeps: of a store of run.store"),
        (["store"], "store: is a store; say which sweeps use it"),
        (["store", "--sweeps", "elsewhere"], "elsewhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_remove_nothing(place, words, line):
    (place / "store").mkdir()
    (place / "store" / "store.json").write_text("{}")
    before = files(place)
    done = ratplus_here(place, "gc", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert line in done.stderr
    assert files(place) == before


def test_a_link_is_refused(place):
    (place / "precious").mkdir()
    (place / "precious" / "x").write_text("mine")
    (place / "outputs" / "sweep" / "adapt" / BUSY).symlink_to(place / "precious")
    done = ratplus_here(place, "gc", "outputs/sweep", "--remove")
    assert (done.returncode, "is a link" in done.stderr) == (2, True)
    assert (place / "precious" / "x").exists()


def test_links_of_a_folder_are_not_followed(place):
    """What lies behind a link is somebody else's."""
    sweep = place / "outputs" / "sweep"
    (place / "theirs").mkdir()
    (place / "theirs" / "precious").write_text("x")
    (sweep / "adapt" / "abcdefabcdef").symlink_to(place / "theirs")
    for words in ((), ("--remove",)):
        done = ratplus_here(place, "gc", "outputs/sweep", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "adapt/abcdefabcdef" in done.stderr
    assert (place / "theirs" / "precious").exists()
    assert (sweep / "adapt" / STRAY).exists()
