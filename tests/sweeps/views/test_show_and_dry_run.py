"""`dry_run=true` and `ratplus show`: what will be done, what was done, and how to do it again."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from cli_runs import run_here as ratplus

from ratplus.records.lock import FolderLock
from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.reproduce import differences, overrides, reproducer

TINY = [
    "data=text", "data.path=some text/text.txt", "model=ratplus_nano", "logger=none", "train.context=64",
    "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8",
    "train.pretrain.steps=4", "train.adapt.steps=2", "train.pretrain.batch=4", "train.adapt.batch=4", "run.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished cell in outputs/out and a failed one in outputs/failing."""
    place = tmp_path_factory.mktemp("place")
    (place / "some text").mkdir()
    (place / "some text" / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert ratplus("evaluate", *TINY, "output=outputs/out", "pattern.dilation=[4,1]") == 0
        bad = ["output=outputs/failing", "pattern=streaming", "train.adapt.lr=1e30", "train.adapt.lr_min=0"]
        assert ratplus("evaluate", *TINY, *bad) == 1
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def cells(folder="outputs/out") -> dict[str, dict]:
    return {cell["label"]: cell for cell in read_manifest(folder)["cells"]}


def test_dry_run_tells_what_is_done_and_what_is_left(capsys, place):
    before = sorted(place.rglob("*"))
    words = [*TINY, "output=outputs/out", "pattern.dilation=[4,1],16", "dry_run=true"]
    assert ratplus("sweep", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    (done,) = (line for line in lines if "layers[D4,D1]" in line)
    (missing,) = (line for line in lines if "D16" in line)
    assert done.split()[0] == cells()["layers[D4,D1]"]["id"]
    assert done.split()[4:7] == ["done", "done", "done"]
    assert missing.split()[4:7] == ["done", "missing", "missing"]  # one pretraining for both
    assert "3 of 5 stages done" in lines[-1]
    assert sorted(place.rglob("*")) == before


def test_dry_run_tells_what_comes_from_the_store(capsys, place, tmp_path):
    words = [*TINY, "pattern.dilation=[4,1],16", "dry_run=true", f"run.store={tmp_path / 'store'}"]
    assert ratplus("evaluate", *TINY, "pattern.dilation=[4,1]", f"output={tmp_path / 'filled'}", words[-1]) == 0
    capsys.readouterr()
    assert ratplus("sweep", *words, "output=outputs/new") == 0
    lines = capsys.readouterr().out.splitlines()
    (known,) = (line for line in lines if "layers[D4,D1]" in line)
    (missing,) = (line for line in lines if "D16" in line)
    assert known.split()[4:7] == ["stored", "stored", "stored"]
    assert missing.split()[4:7] == ["stored", "missing", "missing"]
    own = missing.split()[7]  # FLOPs of its adaptation and evaluation; the pretraining is taken from the store
    assert (
        f"0 of 5 stages done, 3 come from the store {tmp_path / 'store'}, {own} FLOPs to go. Nothing was" in lines[-1]
    )
    assert not (place / "outputs" / "new").exists()
    running = place / "outputs" / "new" / "evaluate" / known.split()[0]
    with FolderLock(running):  # what is at work here is not taken from there
        assert ratplus("sweep", *words, "output=outputs/new") == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "layers[D4,D1]" in line).split()[4:7] == ["stored", "stored", "running"]
    assert "2 come from the store" in lines[-1]
    shutil.rmtree(place / "outputs" / "new")
    (entry,) = (tmp_path / "store" / "evaluate").iterdir()
    (entry / "record.json").unlink()  # what is not whole is not counted on
    assert ratplus("sweep", *words, "output=outputs/new") == 0
    assert "2 come from the store" in capsys.readouterr().out.splitlines()[-1]
    assert ratplus("sweep", *words[:-1], "run.store=outputs/out", "output=outputs/new") == 2
    assert "is a sweep folder; a store is a folder of its own" in capsys.readouterr().err


def test_dry_run_refuses_what_a_sweep_refuses(capsys):
    assert ratplus("sweep", *TINY, "output=outputs/out", "train.pretrain.steps=5", "dry_run=true") == 2
    assert "holds cells with train.pretrain.steps=4" in capsys.readouterr().err


def test_dry_run_and_show_need_no_torch(place):
    """Nor the second that importing it takes."""
    some_id = cells()["layers[D4,D1]"]["id"]
    for words in (["sweep", *TINY, "dry_run=true"], ["show", some_id], ["status", "outputs/out"]):
        code = (
            "import sys\nfrom ratplus.sweeps import cli\n"
            f"try:\n    cli.main({words!r})\nexcept SystemExit:\n    print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=place)
        assert done.stdout.splitlines()[-1] == "False", done


def test_show_prints_a_record(capsys):
    cell = cells()["layers[D4,D1]"]
    assert ratplus("show", cell["id"][:6]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"evaluate {cell['id']}: done")
    for part in ("ratplus_nano layers[D4,D1] seed=0", "recall_accuracy", "evaluate_seconds", "versions", "git"):
        assert part in text
    assert ratplus("show", cell["id"], "outputs/out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == cell["id"]
    assert ratplus("show", cell["stages"]["pretrain"], "outputs/out") == 0
    assert "pretrain" in capsys.readouterr().out


def test_show_prints_a_failure(capsys):
    (failed,) = cells("outputs/failing").values()
    assert ratplus("show", failed["stages"]["adapt"]) == 0
    text = capsys.readouterr().out
    assert "failed" in text.splitlines()[0]
    assert "Diverged: training diverged" in text


def test_the_command_that_show_prints_reproduces_the_record(capsys, place):
    cell = cells()["layers[D4,D1]"]
    ratplus("show", cell["id"])
    line = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(line)
    assert words[:2] == ["ratplus", "evaluate"]
    assert ratplus(*words[1:], "logger=none") == 0
    records = [place / sweep / "evaluate" / cell["id"] / "record.json"
               for sweep in ("outputs/out", f"outputs/again-{cell['id']}")]  # fmt: skip
    first, again = (json.loads(path.read_text()) for path in records)
    assert first["metrics"] == again["metrics"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nothex"], "show: got 'nothex'; give an id, or how it begins"),
        (["show", "123456789abc"], "no stage of outputs/ (give another folder as second word) has an id"),
        (["show", "1", "nowhere"], "nowhere: no such folder; give the output folder of a sweep"),
    ],
)
def test_mistakes(capsys, words, message):
    assert ratplus(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_overrides_of_a_model_of_ones_own():
    (entry,) = (c for c in read_manifest("outputs/out")["cells"] if c["label"] == "layers[D4,D1]")
    entry["config"]["model"]["name"] = "mine"
    entry["config"]["data"]["path"] = 'a "quoted", odd=name.txt'
    words = overrides(entry)
    assert "model.name=mine" in words
    assert "model.layers=2" in words
    assert differences(entry) == []


def test_names_without_end_are_no_files_and_make_no_command():
    (entry,) = (c for c in read_manifest("outputs/out")["cells"] if c["label"] == "layers[D4,D1]")
    entry["config"]["model"]["name"] = "x" * 300  # no disk has a file of that name
    assert f"model.name={'x' * 300}" in overrides(entry)
    entry["config"]["model"]["name"] = "x" * 200_000
    said = reproducer(1)(entry)
    assert "makes a command of 2" in said
    assert len(said) < 300
