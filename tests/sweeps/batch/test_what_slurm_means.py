"""Answers of SLURM and files of jobs, in each case and at each limit: tables by hand."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest

from ratplus.sweeps.batch import slurm
from ratplus.sweeps.batch.jobs_file import JobsUnknown, add_jobs, live_jobs, read_jobs, remove_jobs
from ratplus.sweeps.batch.reasons import LiveJob, changed_keys_lines, held, hopeless, queue_lines, stuck
from ratplus.sweeps.batch.refusals import refusal, sbatch_words
from ratplus.sweeps.batch.slurm import End, SlurmError

# ---- reasons ------------------------------------------------------------------------------------------------------

KEYS = {
    "PartitionTimeLimit": ("minutes",), "QOSMaxWallDurationPerJobLimit": ("minutes",),
    "AssocMaxWallDurationPerJobLimit": ("minutes",),
    **dict.fromkeys(("PartitionNodeLimit", "BadConstraints", "QOSMaxCpuPerJobLimit", "AssocMaxGRESPerJob",
                     "QOSMaxMemoryPerNode", "QOSMinCpuNotSatisfied", "QOSMinGRES"),
                    ("cpus", "memory_gb", "gpus", "constraint", "partition")),
    "PartitionConfig": ("cpus", "memory_gb", "gpus", "minutes", "partition"),
    **dict.fromkeys(("InvalidAccount", "AccountNotAllowed", "AssociationJobLimit"), ("account", "partition")),
    **dict.fromkeys(("InvalidQOS", "QOSNotAllowed"), ("qos", "partition")),
    "DependencyNeverSatisfied": (), "ReservationDeleted": ("sbatch",), "ReservationInvalid": ("sbatch",),
}  # fmt: skip


@pytest.mark.parametrize("reason", KEYS)
def test_keys_of_what_keeps_a_job_from_starting(reason):
    assert hopeless(reason).keys == KEYS[reason]
    assert hopeless(f"{reason} and more") is None
    assert hopeless(f"Not{reason}") is None or reason.startswith(("QOSM", "AssocM")) or "MinCpu" in reason
    assert not held(reason)


@pytest.mark.parametrize(
    ("reason", "is_held"),
    [("JobHeldUser", True), ("JobHeldAdmin", True), ("JobHoldMaxRequeue", True), ("launch failed requeued held", True),
     ("HELD", True), ("upheld", False), ("Priority", False), ("", False), ("heldback", False)],
)  # fmt: skip
def test_jobs_that_somebody_holds(reason, is_held):
    assert held(reason) is is_held


def test_lines_name_each_array_once_and_the_words_of_one_and_of_several():
    never = [LiveJob(f"7_{i}", "queued", "DependencyNeverSatisfied") for i in range(2)] + [
        LiveJob("8_1", "queued", "DependencyNeverSatisfied")
    ]
    assert queue_lines(never) == [
        "3 jobs (7 8) can never start, SLURM says DependencyNeverSatisfied (the job that it waits for will never have "
        "ended); `scancel 7 8`, then the same command again"
    ]
    keys = {"qos": "x\x1b", "partition": None}
    assert queue_lines([LiveJob("1", "queued", "InvalidQOS", keys)])[0].startswith(
        "1 job (1) can never start, SLURM says InvalidQOS (this quality of service may not be used); change "
        "launcher.qos=x\\x1b or launcher.partition=null: `scancel 1`"
    )
    assert queue_lines([LiveJob(f"3_{i}", "queued", "JobHeldUser") for i in range(2)]) == [
        "2 jobs (3) are held, SLURM says JobHeldUser; `scontrol release 3` lets them start"
    ]
    both = [LiveJob("1", "queued", "Priority"), LiveJob("2", "queued", "Resources"), LiveJob("3", "queued", "Priority")]
    assert queue_lines([*both, LiveJob("4", "queued"), LiveJob("5", "running", "InvalidQOS")]) == [
        "queued, with SLURM's reason: 2 Priority, 1 Resources"
    ]
    assert queue_lines([]) == []
    assert not stuck([LiveJob("1", "queued", "Dependency"), LiveJob("2", "queued", "InvalidQOS"), both[0]])


def test_lines_on_one_job_with_other_keys():
    jobs = [LiveJob("7", "queued", "", {"minutes": 60, "qos": "a\x1b"})]
    assert changed_keys_lines(jobs, {"minutes": 90, "qos": None}) == [
        "1 job is queued or running with launcher.minutes=60 launcher.qos=a\\x1b and stay so (given now: "
        "launcher.minutes=90 launcher.qos=null); to change that: `scancel 7`, then the same command again"
    ]
    two = [*jobs, LiveJob("8_1", "running", "", {"minutes": 30}), LiveJob("8_2", "running", "", {"minutes": 30})]
    found = changed_keys_lines(two, {"minutes": 90})
    assert [line.partition(" and stay")[0] for line in found] == [
        "1 job is queued or running with launcher.minutes=60", "2 jobs are queued or running with launcher.minutes=30",
    ]  # fmt: skip
    assert "`scancel 8`" in found[1]


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ("invalid Partition", "partition"), ("Invalid account", "account"), ("account/partition", "partition account"),
        ("Invalid QOS", "qos"), ("Invalid feature", "constraint"), ("time limit", "minutes"), ("--time x", "minutes"),
        ("invalid time", "minutes"), ("gres x", "gpus"), ("degress", ""), ("generic resource", "gpus"), ("GPU", "gpus"),
        ("Memory", "memory_gb"), ("--mem x", "memory_gb"), ("--memory-of", "memory_gb"), ("--memo", ""),
        ("node configuration", "cpus memory_gb gpus constraint"), ("node count", "cpus memory_gb gpus constraint"),
        ("CPU count", "cpus memory_gb gpus constraint"), ("processors", "cpus memory_gb gpus constraint"),
        ("job array", "array_size"), ("policy", "minutes cpus gpus"), ("job submit limit", "minutes cpus gpus"),
        *((word, "sbatch") for word in ("unrecognized option", "invalid option", "ambiguous", "license", "reservation",
                                        "exclude", "nodelist")),
        ("gpu policy", "gpus minutes cpus"), ("nothing known", ""),
    ],
)  # fmt: skip
def test_keys_that_a_refusal_is_about(said, keys):
    see = " ".join(f"launcher.{key}={'null' if key != 'cpus' else 4}" for key in keys.split())
    told = f"sbatch refused the jobs: {said}" + (f" (see {see})" if see else "")
    assert refusal(RuntimeError(said), {"cpus": 4, "qos": None}) == told


def test_what_sbatch_says_twice_or_of_itself():
    lines = [
        "  sbatch: error: a  ",
        "sbatch: a",
        "",
        "Try 'x'",
        "bin/sbatch: fatal: b",
        "Batch job submission failed: c",
    ]
    text = "\n".join([*lines, "not sbatch: d"])
    assert sbatch_words(text) == "a; b; c; not sbatch: d"
    assert sbatch_words("") == ""
    assert sbatch_words("x" * 401) == "x" * 400


# ---- what SLURM is asked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (End("FAILED", "3:0", "n1"), "FAILED, exit code 3, on n1"), (End("FAILED", "0:9"), "FAILED, signal 9"),
        (End("COMPLETED", "0:0"), "COMPLETED, exit code 0"), (End("CANCELLED", "0:0", "n"), "CANCELLED, on n"),
        (End("FAILED", "3"), "FAILED, exit code 3"), (End("TIMEOUT"), "TIMEOUT"), (End("FAILED", "1:15"),
                                                                                   "FAILED, signal 15"),
    ],
)  # fmt: skip
def test_an_end_in_words(end, text):
    assert str(end) == text


@pytest.fixture
def commands(monkeypatch):
    """Answers for SLURM's commands: {first words: (code, stdout, stderr) or a mistake}; `asked` has the whole calls."""
    made = SimpleNamespace(answers={}, asked=[], there={"scontrol", "squeue", "sacct", "scancel"})

    def run(words, **how):
        made.asked.append((words, how))
        key = next(key for key in made.answers if " ".join(words).startswith(key))
        answer = made.answers[key]
        if isinstance(answer, Exception):
            raise answer
        code, out, err = answer
        return subprocess.CompletedProcess(words, code, out, err)

    monkeypatch.setattr(slurm.subprocess, "run", run)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name if name in made.there else None)
    return made


def test_how_a_command_is_asked_and_what_goes_wrong(commands, monkeypatch):
    monkeypatch.setenv("SBATCH_QOS", "x")
    commands.answers = {"scontrol": (0, "out", "")}
    assert slurm.ask("scontrol", "show") == "out"
    ((words, how),) = commands.asked
    environment = how.pop("env")
    assert words == ("scontrol", "show")
    assert how == {"capture_output": True, "text": True, "errors": "replace", "timeout": 10.0,
                   "stdin": subprocess.DEVNULL}  # fmt: skip
    assert environment["PATH"] == os.environ["PATH"]
    assert "SBATCH_QOS" not in environment
    for answer, line in (
        ((3, "", "first\nlast\n"), "scontrol: last"), ((3, "x", ""), "scontrol: exit code 3"),
        (FileNotFoundError(), "this machine has no scontrol"), (PermissionError("no"), "scontrol: no"),
        (subprocess.TimeoutExpired("x", 10), "scontrol: no answer within 10 s"),
    ):  # fmt: skip
        commands.answers = {"scontrol": answer}
        with pytest.raises(SlurmError) as told:
            slurm.ask("scontrol", "show", "last word")
        assert str(told.value) == line


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((0, "", ""), None), ((0, "is DOWN", ""), None), ((1, "a is DOWN\nb is UP\n", ""), None),
        ((1, "UPSTAIRS\nb", "c"), "UPSTAIRS"), ((1, "", "\nodd\x1b\nmore"), "odd\\x1b"),
        ((1, "", ""), "scontrol ping fails"),
    ],
)  # fmt: skip
def test_whether_a_controller_is_there(commands, answer, line):
    commands.answers = {"scontrol ping": answer}
    if line is None:
        slurm.check_reachable()
    else:
        with pytest.raises(SlurmError) as told:
            slurm.check_reachable()
        assert str(told.value) == f"SLURM's controller cannot be reached: {line}"
    commands.there.discard("scontrol")
    commands.asked.clear()
    slurm.check_reachable()
    assert commands.asked == []


def test_the_queue_is_asked_for_all_states_of_this_user(commands):
    lines = [
        "1 PENDING Priority ",
        "2 RUNNING None",
        "3 PENDING None",
        "4 PENDING",
        "5 COMPLETED x",
        "odd",
        "",
        *(f"6_{i} {state} r" for i, state in enumerate(("REQUEUED", "REQUEUE_FED", "SPECIAL_EXIT", "STOPPED"))),
    ]
    commands.answers = {"scontrol": (0, "", ""), "squeue": (0, "\n".join(lines), "")}
    assert slurm.queue() == {
        "1": ("queued", "Priority"), "2": ("running", ""), "3": ("queued", ""), "4": ("queued", ""),
        "6_0": ("queued", "r"), "6_1": ("queued", "r"), "6_2": ("queued", "r"), "6_3": ("running", ""),
    }  # fmt: skip
    assert commands.asked[-1][0] == (
        "squeue", "--noheader", "--array", "--states=all", "--user", str(os.getuid()), "--format", "%i %T %r",
    )  # fmt: skip
    commands.there.discard("squeue")
    with pytest.raises(SlurmError, match="this machine has no squeue to ask about jobs of SLURM"):
        slurm.queue()


def test_ends_of_many_jobs(commands):
    """Fifty are asked about one by one; of the others, and of those that are forgotten, accounts may tell."""
    jobs = [str(number) for number in range(100, 152)]
    other = "151|CANCELLED by 5|0:0\n7|FAILED|1:0|c\n"
    commands.answers = {
        "scontrol --oneliner show job 100": (0, "JobId=100 JobState=FAILED ExitCode=2:0 BatchHost=a", ""),
        "scontrol": (1, "", "gone"),

        "sacct": (0, f"149|TIMEOUT|0:0|None assigned\n150|FAILED|1:0|b\n{other}x\n", ""),
    }  # fmt: skip
    assert slurm.ends(jobs) == {
        "100": End("FAILED", "2:0", "a"), "149": End("TIMEOUT", "0:0", ""), "150": End("FAILED", "1:0", "b"),
        "151": End("CANCELLED", "0:0", ""),
    }  # fmt: skip
    asked = [words for words, _ in commands.asked]
    assert [words[-1] for words in asked[:-1]] == jobs[:50]
    assert asked[-1] == (
        "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs[1:])}",
        "--format=JobID,State,ExitCode,NodeList",
    )  # fmt: skip
    commands.asked.clear()
    assert slurm.ends(["100"]) == {"100": End("FAILED", "2:0", "a")}
    assert len(commands.asked) == 1, "nothing is left to ask accounts about"
    commands.there.discard("sacct")
    assert slurm.ends(["100", "150"]) == {"100": End("FAILED", "2:0", "a")}
    assert slurm.ends([]) == {}


def test_a_task_that_was_cancelled_before_it_started(commands):
    whole = "JobId=9 JobState=CANCELLED ExitCode=0:0\nJobId=91 JobState=FAILED ExitCode=1:0 BatchHost=n\n"
    commands.answers = {
        "scontrol --oneliner show job 9_5": (1, "", ""),
        "scontrol --oneliner show job 9": (0, whole, ""),
    }
    commands.there.discard("sacct")
    assert slurm.ends(["9_5"]) == {"9_5": End("CANCELLED", "0:0", "")}
    commands.answers = {"scontrol": (1, "", "")}
    commands.asked.clear()
    assert slurm.ends(["9_5", "7"]) == {}
    assert [words[-1] for words, _ in commands.asked] == ["9_5", "9", "7"]
    for text, end in (
        ("JobId=1 JobState=RUNNING", None), ("XJobState=FAILED", None), ("JobState=FAILED", End("FAILED")),
        ("a JobState=RUNNING\nJobId=2 JobState=TIMEOUT ExitCode=0:1 BatchHost=h x", End("TIMEOUT", "0:1", "h")),
    ):  # fmt: skip
        commands.answers = {"scontrol": (0, text, "")}
        assert slurm.ends(["1"]) == ({} if end is None else {"1": end})


def test_jobs_are_cancelled_in_one_command(commands):
    commands.answers = {"scancel": (0, "", "")}
    slurm.cancel([])
    assert commands.asked == []
    slurm.cancel(["1", "2_3"])
    assert [words for words, _ in commands.asked] == [("scancel", "1", "2_3")]
    commands.answers = {"scontrol": (1, "", "")}
    assert slurm.most_in_array() is None


# ---- jobs.json ----------------------------------------------------------------------------------------------------

ROW = {"id": "a" * 32, "time": "t", "cluster": "slurm", "jobs": {"b" * 12: "7_1"}}


def test_submissions_are_added_replaced_and_forgotten(tmp_path):
    assert read_jobs(tmp_path) == []
    first, second = ROW | {"launcher": {"minutes": 5}}, ROW | {"id": "c" * 32}
    add_jobs(tmp_path, first)
    add_jobs(tmp_path, second)
    assert read_jobs(tmp_path) == [first, second]
    text = (tmp_path / "jobs.json").read_text()
    assert text == json.dumps({"format": 1, "submissions": [first, second]}, indent=1) + "\n"
    add_jobs(tmp_path, first | {"time": "later"})
    assert read_jobs(tmp_path) == [second, first | {"time": "later"}]
    remove_jobs(tmp_path, "c" * 32)
    remove_jobs(tmp_path, "d" * 32)
    assert read_jobs(tmp_path) == [first | {"time": "later"}]


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({}, True), ({"id": "a" * 8}, True), ({"id": "a" * 7}, False), ({"id": "a" * 33}, False),
        ({"id": "A" * 8}, False),
        ({"cluster": "local"}, True), ({"cluster": "Slurm"}, False), ({"cluster": ""}, False),
        ({"launcher": []}, False),
        ({"jobs": {"b" * 11: "1"}}, False), ({"jobs": {"b" * 12: "1" * 20}}, True),
        ({"jobs": {"b" * 12: "1" * 21}}, False),
        ({"jobs": {"b" * 12: "1_" + "1" * 20}}, True), ({"jobs": {"b" * 12: "1_"}}, False),
        ({"jobs": {"b" * 12: "-1"}}, False),
        ({"jobs": {"b" * 12: "1_" + "1" * 21}}, False), ({"jobs": {"b" * 12: "١"}}, False), ({"jobs": 5}, False),
        ({"launcher": {}}, True), ({"id": 5}, False),
    ],
)  # fmt: skip
def test_ids_that_become_paths_and_words(tmp_path, changes, fine):
    (tmp_path / "jobs.json").write_text(json.dumps({"format": 1, "submissions": [ROW | changes]}))
    if fine:
        assert read_jobs(tmp_path) == [ROW | changes]
        return
    with pytest.raises(JobsUnknown, match=r"jobs.json: damaged \(.*\); delete it if no job of it is queued or running"):
        read_jobs(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": 1, "submissions": 5}'])
def test_a_damaged_file_of_jobs(tmp_path, text):
    (tmp_path / "jobs.json").write_text(text)
    with pytest.raises(JobsUnknown, match="damaged"):
        read_jobs(tmp_path)
    (tmp_path / "jobs.json").write_text('{"format": 2, "submissions": []}')
    with pytest.raises(JobsUnknown) as told:
        read_jobs(tmp_path)
    assert str(told.value) == f"{tmp_path / 'jobs.json'}: format 2; this version reads 1"
    (tmp_path / "there.json").write_text('{"format": 1, "submissions": []}')
    (tmp_path / "jobs.json").unlink()
    (tmp_path / "jobs.json").symlink_to(tmp_path / "there.json")
    with pytest.raises(JobsUnknown):
        read_jobs(tmp_path)


def test_the_latest_job_of_each_item_counts(tmp_path, monkeypatch):
    items = [letter * 12 for letter in "abcd"]
    add_jobs(tmp_path, ROW | {"jobs": {items[0]: "1", items[1]: "2"}, "launcher": {"minutes": 5}})
    add_jobs(tmp_path, ROW | {"id": "e" * 32, "jobs": {items[1]: "3", items[2]: "4", items[3]: "5"}})
    queue = {"1": ("queued", "Priority"), "2": ("running", ""), "4": ("running", "")}
    asked = []
    monkeypatch.setattr(slurm, "queue", lambda: asked.append(1) or queue)
    assert live_jobs(tmp_path) == {
        items[0]: LiveJob("1", "queued", "Priority", {"minutes": 5}), items[1]: LiveJob("2", "running", "",
                                                                                       {"minutes": 5}),
        items[2]: LiveJob("4", "running", "", {}),
    }  # fmt: skip
    queue["3"] = ("queued", "")
    assert live_jobs(tmp_path)[items[1]] == LiveJob("3", "queued", "", {})
    assert live_jobs(tmp_path, {items[2]}.__contains__) == {items[2]: LiveJob("4", "running", "", {})}
    assert len(asked) == 3
    assert live_jobs(tmp_path, lambda item: False) == {}
    assert len(asked) == 3, "SLURM is not asked about nothing"

    def away():
        raise SlurmError("squeue: away")

    monkeypatch.setattr(slurm, "queue", away)
    with pytest.raises(JobsUnknown) as told:
        live_jobs(tmp_path)
    assert str(told.value) == f"{tmp_path / 'jobs.json'} names jobs of SLURM: squeue: away"
    (tmp_path / "other").mkdir()
    add_jobs(tmp_path / "other", ROW | {"cluster": "local", "jobs": {items[0]: "1_1", items[1]: "0"}})
    assert live_jobs(tmp_path / "other") == {}
