"""What a call prints at its end, what it waits for, and how a failure in its own process is told."""

import json
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_cells import entry, settle

from ratplus.checkpoint.facts import CheckpointError
from ratplus.config.cell import Config
from ratplus.config.run import LauncherSection
from ratplus.records.lock import LockLost
from ratplus.records.record import write_record
from ratplus.sweeps.batch.jobs_file import JobsUnknown
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.launch import launch as launching
from ratplus.sweeps.launch import local, pool
from ratplus.sweeps.launch.launch import launch
from ratplus.sweeps.launch.pool import Outcome, Stopped
from ratplus.sweeps.launch.work import work_items
from ratplus.training.errors import Diverged


def cells(*dilations: int) -> list[dict]:
    return [{**entry("m", d), "run": {}} for d in dilations]


@pytest.fixture
def pretend(monkeypatch):
    """Lets the pool end in a way, {cell's number: (code, text)}; gives what it was called with."""
    given: dict = {}

    def made(entries: list[dict], outcomes: dict[int, tuple[int, str]] | Exception):
        def run_pool(items, folder, workers, start, on_event, most):
            given.update(items=items, folder=folder, workers=workers, start=start, most=most)
            if isinstance(outcomes, Exception):
                raise outcomes
            return {entries[number]["id"]: Outcome(*how) for number, how in outcomes.items()}

        monkeypatch.setattr(pool, "run_pool", run_pool)
        monkeypatch.setattr(local, "warm_up", lambda *words: given.update(warm=words))
        monkeypatch.setattr(local, "LocalRun", lambda *words: words)
        return given

    return made


def settled(folder: Path, made: list[dict]) -> list[dict]:
    """The same cells with their pretraining done, and ids as in a manifest."""
    for cell in made:
        cell["id"] = cell["stages"]["evaluate"]
    settle(folder, made[0], "done", "pretrain")
    return made


CONFIG = Config()


def config(**keys) -> Config:
    from dataclasses import replace

    return replace(CONFIG, launcher=LauncherSection(workers=2, threads=3, gpus=4), **keys)


def test_cells_that_were_not_started_are_counted(tmp_path, pretend, capsys):
    made = settled(tmp_path, cells(1, 2, 4, 8))
    given = pretend(made, {0: (1, "bad luck"), 1: (0, ""), 2: (2, "worse")})
    ended = launch(made, tmp_path, "evaluate", config(max_failures=2))
    assert (ended.code, ended.complete) == (1, True)
    assert [item.name for item in given["items"]] == ["m D1", "m D2", "m D4", "m D8"]
    assert (given["folder"], given["workers"], given["most"]) == (tmp_path, 2, 2)
    assert given["warm"] == (4, 2, 3)
    assert given["start"]("item", 7) == ("item", 7, tmp_path, 3, 4)
    assert capsys.readouterr().err.splitlines() == [
        "max_failures=2 reached: 1 cells were not started", "  m D1: bad luck", "  m D4: worse",
        f"2 of 4 cells failed; `ratplus status {tmp_path}` says why, logs are in {tmp_path / 'logs'}; running the same "
        "command again retries them",
    ]  # fmt: skip


def test_nothing_is_said_of_cells_that_all_ended_well(tmp_path, pretend, capsys):
    made = settled(tmp_path, cells(1, 2))
    pretend(made, {0: (0, ""), 1: (0, "")})
    assert launch(made, tmp_path, "evaluate", config()).code == 0
    assert capsys.readouterr().err == ""
    settle(tmp_path, made[0], "done")
    pretend(made, {1: (0, "")})
    left = tmp_path / "evaluate" / made[0]["id"] / "training-3.pt"
    left.touch()
    assert launch(made, tmp_path, "evaluate", config()).code == 0
    assert capsys.readouterr().err == "", "a pretraining or cell that was done before is not counted"
    assert not left.exists(), "what a killed process left behind its record"


def test_a_stopped_sweep_is_not_complete(tmp_path, pretend, capsys):
    made = settled(tmp_path, cells(1, 2))
    pretend(made, Stopped(15))
    ended = launch(made, tmp_path, "evaluate", config())
    assert (ended.code, ended.complete) == (143, False)
    line = "ratplus: stopped by SIGTERM; run the same command again to continue\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("number", "more"), [(10, None), (11, 1), (13, 3)])
def test_ten_failures_are_named(tmp_path, capsys, number, more):
    made = settled(tmp_path, cells(*range(1, number + 2)))
    for cell in made[:number]:
        settle(tmp_path, cell, "failed")
    items = [item for item in work_items(made, "evaluate") if item.last == "evaluate"]
    assert launching._conclude(items, tmp_path, "none", {made[-1]["id"]: ""}) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:10] == [f"  m D{d}: Bad: luck" for d in range(1, 11)]
    assert lines[10:-1] == [f"  ... and {number + 1 - 10} more"]
    assert lines[-1].startswith(f"{number + 1} of {number + 1} cells failed; ")
    assert lines[-1].endswith("running the same command again with retry=all or retry=failed tries them again")


def test_a_single_cell_that_may_not_be_tried_again(tmp_path, capsys):
    made = settled(tmp_path, cells(1))
    settle(tmp_path, made[0], "failed")
    ended = launch(made, tmp_path, "evaluate", config(retry="none"))
    assert (ended.code, ended.complete) == (1, True)
    assert capsys.readouterr().err.startswith("  m D1: Bad: luck\n1 of 1 cells failed; ")


# ---- a failure in this process ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_cell_in_this_process_has_a_bar_for_each_stage(tmp_path, monkeypatch, capsys, rank):
    from ratplus.sweeps.launch import display

    (made,) = settled(tmp_path, cells(1))
    bars, seen, given = SimpleNamespace(tasks=[], told=[]), [], []
    bars.add_task = lambda *words, **named: bars.tasks.append((words, named)) or len(bars.tasks)
    bars.update = lambda *words, **named: bars.told.append((words, named))
    monkeypatch.setattr(display, "progress_bars", lambda console: nullcontext(bars))
    monkeypatch.setattr(launching, "external_place", lambda: None if rank is None else SimpleNamespace(rank=rank))
    monkeypatch.setattr(launching, "cell_config", lambda one: "config")
    logs = tmp_path / "logs"

    def run_cell(config, stages, folder, last, progress, print_line, print_failure):
        given.append((config, stages, folder, last))
        progress("pretrain", 1, 9, {"loss": 2})
        progress("pretrain", 2, 9, {"lr": 0.5})
        progress("adapt", 3, 3, {})
        seen.extend(sorted(path.suffixes[0] for path in logs.iterdir()))
        print_line("[a] line")
        return 5

    monkeypatch.setattr(launching, "run_cell", run_cell)
    assert launching._run_single(made, tmp_path, "evaluate") == 5
    assert given == [("config", made["stages"], tmp_path, "evaluate")]
    assert bars.tasks == [
        (("m D1: pretrain",), {"total": 9, "note": ""}), (("m D1: adapt",), {"total": 3, "note": ""}),
    ]  # fmt: skip
    assert bars.told == [
        ((1,), {"completed": 1, "note": "loss 2.000"}), ((1,), {"completed": 2, "note": ""}),
        ((2,), {"completed": 3, "note": ""}),
    ]  # fmt: skip
    assert seen == ([".job"] if rank != 1 else []) + [".progress"], "who is at work is noted by the first rank"
    assert list(logs.iterdir()) == []
    assert capsys.readouterr().err == "[a] line\n"


def told(tmp_path, capsys, error: Exception, recorded: str | None, message="m") -> tuple[int, str]:
    (made,) = settled(tmp_path, cells(1))
    if recorded:
        write_record(
            tmp_path / "adapt" / made["stages"]["adapt"], stage="adapt", config={"dilation": 1}, status="failed",
            parent=made["stages"]["pretrain"], metrics={}, timing={}, provenance={},
            error={"type": recorded, "message": message},
        )  # fmt: skip
    code = launching._say_failure(error, made, tmp_path, "evaluate")
    return code, capsys.readouterr().err.replace(made["stages"]["adapt"], "ID").replace(str(tmp_path), "OUT")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RuntimeError("odd"), 1, "adapt ID: RuntimeError: odd; `ratplus show ID OUT` has the trace"),
        (ValueError("a mistake"), 1, "adapt ID: a mistake"), (CheckpointError("no weights"), 2, "adapt ID: no weights"),
        (Diverged("loss is NaN"), 1, "adapt ID: loss is NaN"),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, "adapt ID: x.txt: No such file"),
        (OSError("full"), 1, "adapt ID: full"),
    ],
)  # fmt: skip
def test_a_recorded_failure_is_one_line(tmp_path, capsys, error, code, line):
    assert told(tmp_path, capsys, error, type(error).__name__) == (code, f"ratplus: error: {line}\n")


@pytest.mark.parametrize("recorded", [None, "Other"])
def test_a_failure_that_no_record_tells_of(tmp_path, capsys, recorded):
    """Leaves by the way of all commands, but for what says all there is."""
    with pytest.raises(RuntimeError, match="odd"):
        told(tmp_path, capsys, RuntimeError("odd"), recorded)
    for error in (Diverged("loss is NaN"), LockLost("the lock is lost")):
        code, line = told(tmp_path, capsys, error, recorded)
        assert (code, line) == (1, f"ratplus: error: {error}\n")


def test_a_record_of_a_stage_that_is_done_tells_of_no_failure(tmp_path, capsys):
    (made,) = settled(tmp_path, cells(1))
    settle(tmp_path, made, "done")
    with pytest.raises(RuntimeError, match="odd"):
        launching._say_failure(RuntimeError("odd"), made, tmp_path, "evaluate")


# ---- jobs that are waited for -------------------------------------------------------------------------------------


class Waiting:
    """A cluster whose answers are chosen: of each look the jobs, or a mistake."""

    def __init__(self, monkeypatch, folder: Path, cluster: str, answers: list):
        self.slept, self.recorded, self.collected, answers = [], [], [], list(answers)

        def live_jobs(place, wanted):
            assert place == folder
            assert wanted("a")
            assert not wanted("other")
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(launching, "live_jobs", live_jobs)
        monkeypatch.setattr(
            launching, "record_lost_jobs", lambda place, live, wanted: self.recorded.append((dict(live), wanted("a")))
        )
        monkeypatch.setattr(launching.time, "sleep", self.slept.append)
        handles = [SimpleNamespace(done=lambda: self.collected.append(1))]
        self.submission = SimpleNamespace(handles=handles, cluster=cluster)
        self.settled = launching._wait_for_jobs(self.submission, [SimpleNamespace(id="a")], folder)


RUNS, WAITS = LiveJob("1", "running"), LiveJob("2", "queued", "Priority")
NEVER = LiveJob("3", "queued", "PartitionTimeLimit", {"minutes": 9})


def test_jobs_are_waited_for_longer_and_longer_until_they_end(tmp_path, monkeypatch, capsys):
    looks = [{"a": WAITS, "b": RUNS}] * 2 + [{"a": RUNS}] * 6 + [{}]
    found = Waiting(monkeypatch, tmp_path, "slurm", looks)
    assert found.settled is True
    assert found.slept == [2.0, 3.0, 4.5, 6.75, 10.125, 15.0, 15.0, 15.0]
    assert found.recorded == [({}, True)]
    assert found.collected == []
    assert capsys.readouterr().err.splitlines() == [
        "1 jobs running, 1 queued", "queued, with SLURM's reason: 1 Priority", "1 jobs running, 0 queued",
    ]  # fmt: skip


def test_a_queue_that_is_away_is_asked_again_later(tmp_path, monkeypatch, capsys):
    away = JobsUnknown("squeue is away")
    found = Waiting(monkeypatch, tmp_path, "slurm", [{"a": RUNS}, away, away, {"a": RUNS}, {}])
    assert found.settled is True
    assert found.slept == [2.0, 15.0, 15.0, 15.0]
    assert capsys.readouterr().err.splitlines() == [
        "1 jobs running, 0 queued", "squeue is away; asking again", "1 jobs running, 0 queued",
    ]  # fmt: skip


def test_jobs_that_can_never_start_are_not_waited_for(tmp_path, monkeypatch, capsys):
    found = Waiting(monkeypatch, tmp_path, "slurm", [{"a": NEVER, "b": RUNS}, {"a": NEVER}])
    assert found.settled is False
    assert found.slept == [2.0]
    assert found.recorded == [({"a": NEVER}, True)]
    assert "can never start" in capsys.readouterr().err


def test_jobs_that_are_processes_are_collected(tmp_path, monkeypatch, capsys):
    found = Waiting(monkeypatch, tmp_path, "local", [{"a": RUNS}, {"a": RUNS}, {}])
    assert found.slept == [1.0, 1.0]
    assert len(found.collected) == 3


def submitted(monkeypatch, tmp_path, made, capsys, jobs: int, settles: bool = True, **keys):
    """What a call says that submits so many jobs; then they end as the records say."""
    from dataclasses import replace

    from ratplus.sweeps.launch import slurm

    section = LauncherSection(kind="slurm", workers=None, threads=None, **{"gpus": None, "array_size": 5} | keys)
    items = work_items(made, "evaluate")
    todo = [item for item in items if item.state(tmp_path).status != "done"]
    answer = SimpleNamespace(
        jobs={item.id: str(number) for number, item in enumerate(todo[:jobs])}, arrays=["71", "72"][:jobs], most=4,
        already={item.id: LiveJob("9", "queued", "Priority") for item in todo[jobs:]}, cluster=section.cluster,
        handles=[],
    )  # fmt: skip
    given: list = []
    monkeypatch.setattr(slurm, "submit", lambda *words: given.append(words) or answer)
    monkeypatch.setattr(launching, "_wait_for_jobs", lambda *words: given.append(words) or settles)
    cells_alone = [item for item in items if item.last == "evaluate"]
    whole = replace(CONFIG, launcher=section, max_failures=3)
    ended = launching._submit_jobs(cells_alone, todo, tmp_path, "evaluate", whole)
    assert given[0] == (todo, tmp_path, "evaluate", section, 3)
    said = capsys.readouterr()
    return ended, said.out.splitlines(), said.err.splitlines(), given[1:]


def test_what_is_said_of_jobs_that_were_submitted(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a b"
    made = [{**cell, "id": cell["stages"]["evaluate"]} for cell in cells(1, 2)]
    last = f"progress: ratplus status '{folder}' --watch; then the table: ratplus report '{folder}'"
    ended, out, err, waited = submitted(monkeypatch, folder, made, capsys, 3)
    assert (ended.code, ended.complete, err, waited) == (0, False, [], [])
    assert out == [
        "submitted 3 jobs (1 pretrainings, 2 cells): 71 72",
        "watch: squeue -j 71,72; stop: scancel 71 72", last,
    ]  # fmt: skip
    _, out, _, _ = submitted(monkeypatch, folder, made, capsys, 0)
    assert out == [
        "submitted 0 jobs (0 pretrainings, 0 cells): none; 3 are queued or running already",
        "queued, with SLURM's reason: 3 Priority", last,
    ]  # fmt: skip
    assert "watch: " not in "".join(submitted(monkeypatch, folder, made, capsys, 3, cluster="local")[1])
    five = [{**cell, "id": cell["stages"]["evaluate"]} for cell in cells(1, 2, 4, 8, 16)]
    least = "the cluster allows 4 tasks an array, which is less than launcher.array_size=5"
    assert submitted(monkeypatch, folder, five, capsys, 5)[1][1] == least
    for jobs, size in ((4, 5), (5, 4)):
        assert least[:20] not in "".join(submitted(monkeypatch, folder, five, capsys, jobs, array_size=size)[1])


@pytest.mark.parametrize("settles", [True, False])
def test_what_is_said_of_jobs_that_were_waited_for(tmp_path, monkeypatch, capsys, settles):
    made = settled(tmp_path, cells(1, 2))
    settle(tmp_path, made[0], "done")
    ended, _, err, waited = submitted(monkeypatch, tmp_path, made, capsys, 1, settles, wait=True)
    assert (ended.code, ended.complete, len(waited)) == (1, settles, 1)
    assert err == [f"1 of 2 cells are not done; `ratplus status {tmp_path}` tells of each"]
    settle(tmp_path, made[1], "failed")
    ended, _, err, _ = submitted(monkeypatch, tmp_path, made, capsys, 1, settles, wait=True)
    assert (ended.code, err[0], len(err)) == (1, "  m D2: Bad: luck", 2)

    def conclude(*_):
        settle(tmp_path, made[1], "done")  # as if the job had just ended
        return 0

    monkeypatch.setattr(launching, "_conclude", conclude)
    ended, _, err, _ = submitted(monkeypatch, tmp_path, made, capsys, 1, settles, wait=True)
    assert (ended.code, ended.complete, err) == (0, settles, [])


def test_nothing_is_submitted_where_all_is_done(tmp_path, capsys):
    made = settled(tmp_path, cells(1, 2))
    items = [item for item in work_items(made, "evaluate") if item.last == "evaluate"]
    settle(tmp_path, made[0], "failed")
    ended = launching._submit_jobs(items, [], tmp_path, "evaluate", config(retry="none"))
    assert (ended.code, ended.complete) == (1, True)
    assert json.dumps(capsys.readouterr().out) == '""'


def test_a_signal_ends_work_in_order_only_where_python_hears_it(monkeypatch):
    """In a thread no handler can be set, and ranks are ended by who started them."""
    before = signal.getsignal(signal.SIGTERM)
    seen: list = []

    def work():
        with launching._terminated_in_order():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with monkeypatch.context() as patch:
        patch.setattr(launching, "external_place", lambda: "a rank")
        work()
    assert seen == [before] * 2
    work()
    assert seen[2] is not before
    with pytest.raises(SystemExit) as ended:
        seen[2](15, None)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
