"""What W&B's library is asked for when a run is written, whole; the library is a stand-in that notes it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus.sweeps.mirror import write
from ratplus.sweeps.mirror.runs import RunSpec

WHEN = "2026-01-02T03:04:05+00:00"
QUIET = dict(
    silent=True, console="off", program="ratplus", init_timeout=30.0, finish_timeout_raises=True, disable_git=True,
    disable_code=True, save_code=False, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
    x_save_requirements=False,
)  # fmt: skip


class Library:
    """Notes calls in order in `told`; `wrote` says whether a run file is there at the end."""

    def __init__(self, folder: Path):
        self.told: list = []
        self.wrote, self.fails_at, self.place = True, None, folder / "wandb" / "offline-run-1-new"
        self.environment: dict[str, str] = {}
        self.summary = SimpleNamespace(update=lambda values: self.told.append(("summary", values)))
        self.config = SimpleNamespace(update=lambda *given, **named: self.told.append(("config", given, named)))
        self.settings = SimpleNamespace(sync_dir=str(self.place))

    @staticmethod
    def Settings(**given):
        return given

    def init(self, **given):
        self.environment = dict(os.environ)
        self.place.mkdir(parents=True, exist_ok=True)
        self.told.append(("init", given))
        return self

    def define_metric(self, name, step_metric):
        self.told.append(("metric", name, step_metric))

    def log(self, row, step):
        if step == self.fails_at:
            raise KeyboardInterrupt
        self.told.append(("log", row, step))

    def finish(self, exit_code):
        if self.wrote:
            (self.place / "run.wandb").touch()
        self.told.append(("finish", exit_code))

    def Table(self, columns, data, allow_mixed_types):
        assert allow_mixed_types is True
        return ("table", columns, data)

    def Image(self, path):
        if Path(path).read_text() != "picture":
            raise SyntaxError("broken\nfile")
        return ("image", path)

    def Artifact(self, name, type, metadata):
        kept = []
        return SimpleNamespace(
            told=(name, type, metadata, kept), add_file=lambda path, policy: kept.append((path, policy))
        )

    def log_artifact(self, artifact):
        self.told.append(("artifact", *artifact.told))


@pytest.fixture
def library(tmp_path, monkeypatch):
    made = Library(tmp_path)
    monkeypatch.setattr(write, "library", lambda: made)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    return made


def spec(**changes) -> RunSpec:
    made = RunSpec("new", "a name", "group", "adapt", ["t"], {"a": 1}, [{"step": 2, "x": 1.0}, {"step": 5, "x": 2.0}],
                   {"s": 1}, 0, WHEN)  # fmt: skip
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_run_of_a_stage_offline(tmp_path, library, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    monkeypatch.setenv("WANDB_NOTES", "another's")
    monkeypatch.setenv("WANDB_API_KEY", "kept")
    monkeypatch.chdir(tmp_path)
    for name in ("1-new", "2-other"):
        (tmp_path / "wandb" / f"offline-run-0{name}").mkdir(parents=True)
    write.write_run(spec(config={"a": 1, "provenance": {"host": "h"}}), "offline", Path(), "p", "e")
    stamp = {"_timestamp": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()}
    assert library.told == [
        ("init", dict(
            project="p", entity="e", mode="offline", dir=str(tmp_path), group="group", job_type="adapt", id="new",
            name="a name", tags=["t"], config={"a": 1, "provenance": {"host": "h"}}, resume=None,
            reinit="finish_previous", settings=QUIET | {"finish_timeout": 60.0})),
        ("metric", "*", "step"),
        ("log", {"step": 2, "x": 1.0} | stamp, 2), ("log", {"step": 5, "x": 2.0} | stamp, 5),
        ("config", ({"provenance": {"host": "h"}},), {"allow_val_change": True}),
        ("summary", {"s": 1}), ("finish", 0),
    ]  # fmt: skip
    assert {"WANDB_RUN_ID", "WANDB_NOTES"}.isdisjoint(library.environment)
    assert (library.environment["WANDB_API_KEY"], os.environ["WANDB_RUN_ID"]) == ("kept", "another")
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "wandb"), "where files wait until they are sent"
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == ["offline-run-02-other", "offline-run-1-new"]
    whole = spec(config={"a": 1, "provenance": {"host": "h"}})
    assert write.offline_checksums(tmp_path) == {"new": whole.checksum()}
    assert (library.place / "ratplus.json").read_text() == (
        json.dumps({"id": "new", "checksum": whole.checksum()}) + "\n"
    )


def test_a_run_online_leaves_what_lies_there_and_no_marker(tmp_path, library):
    (tmp_path / "wandb" / "offline-run-0-new").mkdir(parents=True)
    library.wrote = False
    write.write_run(spec(rows=[], written_at=None, exit_code=None), "online", tmp_path, "p", None)
    assert [told[0] for told in library.told] == ["init", "metric", "summary", "finish"]
    assert library.told[0][1]["mode"] == "online"
    assert library.told[-1] == ("finish", 0)
    assert (tmp_path / "wandb" / "offline-run-0-new").is_dir()
    assert not (library.place / "ratplus.json").exists()


def test_an_offline_run_without_a_file_is_a_mistake_and_has_no_marker(tmp_path, library):
    library.wrote = False
    with pytest.raises(OSError, match=r"offline-run-1-new: W&B wrote no run file; run the same command again"):
        write.write_run(spec(exit_code=1), "offline", tmp_path, "p", None)
    assert library.told[-1] == ("finish", 1)
    assert write.offline_checksums(tmp_path) == {}


def test_an_interrupted_run_is_ended_as_such(tmp_path, library):
    library.fails_at = 5
    with pytest.raises(KeyboardInterrupt):
        write.write_run(spec(), "offline", tmp_path, "p", None)
    assert [told[0] for told in library.told] == ["init", "metric", "log", "finish"]
    assert library.told[-1] == ("finish", 255)
    assert write.offline_checksums(tmp_path) == {}


def test_rows_have_the_time_of_the_record_where_there_is_one(tmp_path, library):
    write.write_run(spec(written_at=None), "online", tmp_path, "p", None)
    assert [told[1] for told in library.told if told[0] == "log"] == [{"step": 2, "x": 1.0}, {"step": 5, "x": 2.0}]


@pytest.mark.parametrize("rows", [0, 2])
def test_a_report_has_tables_and_figures_at_its_last_step(tmp_path, library, rows):
    (tmp_path / "t.csv").write_text('a,b\n1,\n2.5,"x,y"\n')
    (tmp_path / "f.png").write_text("picture")
    (tmp_path / "n.md").write_text("other")
    made = spec(job_type="report", files=[tmp_path / name for name in ("t.csv", "f.png", "n.md")])
    made.rows = made.rows[:rows]
    write.write_run(made, "online", tmp_path, "p", None)
    assert library.told[1:3] == [("metric", "*", "step"), ("metric", "by_dilation/*", "by_dilation/dilation")]
    step = 5 if rows else 0
    assert library.told[-3:] == [
        ("log", {
            "step": step, "table/t": ("table", ["a", "b"], [[1, None], [2.5, "x,y"]]),
            "figure/f": ("image", str(tmp_path / "f.png")),
        }, step),
        ("summary", {"s": 1}), ("finish", 0),
    ]  # fmt: skip


def test_a_model_is_an_artifact_that_is_waited_for_longer(tmp_path, library):
    files = [tmp_path / name for name in ("model.safetensors", "config.json", "x.csv")]
    files[2].write_text("a\n1\n")
    write.write_run(spec(files=files), "online", tmp_path, "p", None)
    assert library.told[0][1]["settings"] == QUIET | {"finish_timeout": 1800.0}
    assert library.told[-3:] == [
        ("summary", {"s": 1}),
        ("artifact", "adapt-new", "model", {"stage": "adapt"}, [(str(path), "immutable") for path in files[:2]]),
        ("finish", 0),
    ]  # fmt: skip


def test_a_run_that_goes_on_is_resumed_and_one_with_models_has_more_time(tmp_path, library):
    folder = tmp_path / "not" / "there"
    write.start_run(spec(), "online", folder, "p", "e", resume="allow", models=True)
    given = library.told[0][1]
    assert (given["resume"], given["settings"]["finish_timeout"], given["dir"]) == ("allow", 1800.0, str(folder))
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("f.png", b"odd", r"f\.png: not a picture \(broken\); write it again with `ratplus report`"),
        ("t.csv", b"", r"t\.csv: not a table \(not enough values.*\); write it again with `ratplus report`"),
        ("t.csv", b"\xff\xfe", r"t\.csv: not a table \(.*decode.*\); write it again"),
    ],
)
def test_a_damaged_file_of_a_report_is_named(tmp_path, library, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=line):
        write.write_run(spec(files=[tmp_path / name]), "online", tmp_path, "p", None)
    assert library.told[-1] == ("finish", 255)


def test_the_library_has_files_of_its_own_beside_the_run_where_their_usual_place_cannot_be_written(
    tmp_path, library, monkeypatch
):
    (tmp_path / "file").touch()
    for given, moved in (
        (str(tmp_path), False), (str(tmp_path / "a" / "b"), False), (str(tmp_path / "file"), True),
        (str(tmp_path / "file" / "x"), True), ("/proc/x", True),
    ):  # fmt: skip
        monkeypatch.setenv("WANDB_CACHE_DIR", given)
        monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
        write.start_run(spec(), "offline", tmp_path / "run", "p", None)
        assert os.environ["WANDB_CACHE_DIR"] == (str(tmp_path / "run" / "wandb") if moved else given)
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path)
    monkeypatch.delenv("WANDB_CACHE_DIR")
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    write.start_run(spec(), "offline", tmp_path / "run", "p", None)
    assert os.environ["WANDB_CACHE_DIR"] == os.environ["WANDB_DATA_DIR"] == str(tmp_path / "run" / "wandb")
    # `~/.local/share` may be closed while `~/.cache` is not.
    (tmp_path / "home" / ".local").mkdir(parents=True)
    (tmp_path / "home" / ".local" / "share").touch()
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write.start_run(spec(), "offline", tmp_path / "run", "p", None)
    assert "WANDB_CACHE_DIR" not in os.environ
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "run" / "wandb")


def test_what_another_runs_variables_say_is_not_taken():
    assert set(write._OF_ANOTHER_RUN) == {
        f"WANDB_{name}" for name in (
            "RUN_ID", "RESUME", "FORK_FROM", "NAME", "NOTES", "TAGS", "RUN_GROUP", "JOB_TYPE", "SWEEP_ID", "PROGRAM",
            "CONSOLE", "MODE", "START_METHOD",
        )
    }  # fmt: skip
