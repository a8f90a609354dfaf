"""Several ranks train as one, stop and continue exactly, and a failure of any of them ends as a record.

All on CPUs over gloo. Nothing here can hang: rank 0 gives up on a silent rank after LIMIT seconds, and the others end
with rank 0; other processes are ended by their timeouts.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cli_runs
import pytest
import torch
from safetensors.torch import load_file

import ratplus.training.team
from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.run import RunSection, TrainerSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.records.record import read_record
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.training.errors import Interrupted, LayoutError, PeerFailed
from ratplus.training.ranks import Place, external_place, micro_batches, place_of

LIMIT = 60.0
STEPS = 5


@pytest.fixture(autouse=True)
def no_hanging(monkeypatch):
    monkeypatch.setattr(ratplus.training.team, "_COLLECTIVE_SECONDS", LIMIT)
    monkeypatch.setattr(ratplus.training.team, "_MEET_SECONDS", LIMIT)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return folder


def config_of(text: Path, strategy="single", devices=1, micro=1, precision="float32") -> Config:
    """Active recurrence learning in 4 rows a step (some of them recall), then adaptation with faster gates."""
    pretrain = RecipeSection(steps=STEPS, batch=4, micro_batch=micro, lr=1e-2, arl=True, arl_dilation=8)
    return Config(
        model=ModelSection("nano", layers=2, d_model=16, d_head=8, init_std=0.2, gate_bias=-1.0),
        data=DataSection(
            source="text", path=str(text / "text.txt"), root=str(text / "data"),
            recall=RecallSection(length=16, keys=4, values=4, pairs=4),
        ),
        train=TrainSection(
            context=32, precision=precision, pretrain=pretrain,
            adapt=RecipeSection(
                steps=2, batch=4, micro_batch=micro, order="random", gate_lr=5e-3, gate_bias_lr=2e-2
            ),
        ),
        eval=EvalSection(text_rows=8, recall_rows=8, batch=4),
        run=RunSection(accelerator="cpu", threads=1, checkpoint_seconds=0.0, log_every=1),
        trainer=TrainerSection(strategy, devices),
    )  # fmt: skip


def cell_of(config: Config, root: Path, on_step=lambda done: None, said=None) -> Cell:
    def progress(stage, done, _total, _numbers):
        if stage == "pretrain":
            on_step(done)

    return Cell(config, Surroundings(root, progress=progress, print_line=(said if said is not None else []).append))


def trained(cell: Cell, root: Path, stage="pretrain") -> tuple[dict, list[list[float]]]:
    """Weights, and the curve as numbers."""
    folder = getattr(cell.plan, stage).folder(root)
    lines = (folder / "curve.csv").read_text().splitlines()
    return load_file(folder / "model.safetensors"), [[float(v) for v in line.split(",")] for line in lines[1:]]


def assert_same_bits(a, b):
    assert a[1] == b[1]
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])


def assert_close(a, b, tolerance=1e-5):
    """Equal up to the order of float32 sums: every weight tensor and every figure of the curve, relatively."""
    for row, other in zip(a[1], b[1], strict=True):
        assert row == pytest.approx(other, rel=tolerance)
    for name in a[0]:
        assert (a[0][name] - b[0][name]).norm() <= tolerance * b[0][name].norm(), name


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    cell = cell_of(config_of(text), root)
    record = cell.run()
    return cell, root, record


def ddp_run(text, root, **changes):
    cell = cell_of(config_of(text, "ddp", 2, **changes), root)
    cell.run("adapt")
    return cell


@pytest.fixture(scope="module")
def pair(text, tmp_path_factory):
    """Two ranks, never disturbed."""
    root = tmp_path_factory.mktemp("pair")
    return ddp_run(text, root), root


def other_rank() -> int:
    return multiprocessing.active_children()[0].pid


# ---- as one -------------------------------------------------------------------------------------------------------


def test_two_ranks_train_as_one(alone, pair):
    """Same ids, same weights and curve up to rounding; one record, one curve; then the record is there for all."""
    (single, single_root, record), (cell, root) = alone, pair
    assert [stage.id for stage in cell.plan] == [stage.id for stage in single.plan]
    for stage in ("pretrain", "adapt"):
        assert_close(trained(cell, root, stage), trained(single, single_root, stage))
    files = {p.name for p in cell.plan.pretrain.folder(root).iterdir()}
    assert files == {"record.json", "curve.csv", "model.safetensors", "config.json"}
    told = read_record(cell.plan.pretrain.folder(root))
    assert told["timing"]["layouts"] == [
        {"from_step": 0, "strategy": "ddp", "ranks": 2, "micro_batches": 4, "compile": False}
    ]
    assert multiprocessing.active_children() == []
    # Evaluation is rank 0's alone, and what is done starts no other rank.
    values = {k: m["value"] for k, m in cell.run()["metrics"].items()}
    assert values == pytest.approx({k: m["value"] for k, m in record["metrics"].items()}, rel=1e-4)
    assert multiprocessing.active_children() == []


def test_sharded_ranks_train_as_one(alone, text, tmp_path):
    cell = cell_of(config_of(text, "fsdp", 2), tmp_path)
    cell.run("adapt")
    for stage in ("pretrain", "adapt"):
        assert_close(trained(cell, tmp_path, stage), trained(alone[0], alone[1], stage))


@pytest.mark.slow
def test_sharded_bf16_is_autocast(text, tmp_path):
    """Matrices gathered as bfloat16 give the numbers that autocast gives alone."""
    results = []
    for strategy, devices in (("single", 1), ("ddp", 2), ("fsdp", 2)):
        root = tmp_path / strategy
        cell = cell_of(config_of(text, strategy, devices, precision="bf16"), root)
        cell.run("pretrain")
        results.append(trained(cell, root))
    single, ddp, fsdp = results
    # Loss and gradient norm before the first optimizer step; then AdamW's signs enlarge any rounding.
    first = slice(4, 6)
    for ranks in (ddp, fsdp):
        assert ranks[1][0][first] == pytest.approx(single[1][0][first], rel=1e-4)
        assert_close(ranks, single, 3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_activation_checkpointing(text, tmp_path, strategy):
    """No bit changes; under fsdp, weights that were freed are gathered again for the blocks' second run."""
    results = []
    for checkpointing in (False, True):
        config = config_of(text, strategy, 2)
        config.trainer.activation_checkpointing = checkpointing
        cell = cell_of(config, tmp_path / str(checkpointing))
        cell.run("pretrain")
        results.append(trained(cell, tmp_path / str(checkpointing)))
    assert_same_bits(*results)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_compiled_blocks(alone, text, tmp_path, strategy, monkeypatch):
    monkeypatch.setattr(ratplus.training.team, "_COLLECTIVE_SECONDS", 20 * LIMIT)  # one may wait for another to compile
    config = config_of(text, strategy, 2)
    config.trainer.activation_checkpointing = config.trainer.compile = True
    cell = cell_of(config, tmp_path)
    record = cell.run("pretrain")
    assert [at["compile"] for at in record["timing"]["layouts"]] == [True]
    assert_close(trained(cell, tmp_path), trained(alone[0], alone[1]), 1e-4)


# ---- stopping and continuing --------------------------------------------------------------------------------------


def interrupt(text, root, strategy, devices, number, at, whom=other_rank) -> None:
    stopped = cell_of(
        config_of(text, strategy, devices), root, lambda done: os.kill(whom(), number) if done == at else None
    )
    with pytest.raises(Interrupted) as raised:
        stopped.run("pretrain")
    assert raised.value.number == number
    folder = stopped.plan.pretrain.folder(root)
    assert not (folder / "record.json").exists()
    assert len(list(folder.glob("training-*.pt"))) == 1
    assert multiprocessing.active_children() == []


def test_a_signal_to_any_rank_stops_all_and_they_continue_exactly(pair, alone, text, tmp_path):
    interrupt(text, tmp_path / "a", "ddp", 2, signal.SIGTERM, at=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    resumed = ddp_run(text, tmp_path / "a")
    record = read_record(resumed.plan.pretrain.folder(tmp_path / "a"))
    assert record["timing"]["resumed_at_step"] in (2, 3)
    assert_same_bits(trained(resumed, tmp_path / "a"), trained(*pair))

    # One process may finish what two began: it reads the same data, and says what it does.
    said = []
    cell = cell_of(config_of(text), tmp_path / "b", said=said)
    layouts = cell.run("pretrain")["timing"]["layouts"]
    assert [(at["strategy"], at["ranks"]) for at in layouts] == [("ddp", 2), ("single", 1)]
    assert len(said) == 1
    assert "trainer=single (1 ranks, 4 micro-batches), before with trainer=ddp (2 ranks" in said[0]
    assert_close(trained(cell, tmp_path / "b"), trained(alone[0], alone[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "devices"), [("fsdp", 2), ("ddp", 4), ("fsdp", 4)])
def test_continuing_exactly(text, tmp_path, strategy, devices):
    """With more than two ranks, sums must also be taken in the same order before and after."""
    interrupt(text, tmp_path / "a", strategy, devices, signal.SIGINT, at=3, whom=os.getpid)
    results = []
    for root in (tmp_path / "a", tmp_path / "b"):
        cell = cell_of(config_of(text, strategy, devices), root)
        cell.run("pretrain")
        results.append(trained(cell, root))
    assert_same_bits(*results)


# ---- failures -----------------------------------------------------------------------------------------------------


def test_a_killed_rank_is_a_recorded_failure(text, tmp_path):
    config = config_of(text, "ddp", 2)
    config = replace(config, run=replace(config.run, threads=None))
    cell = cell_of(config, tmp_path, lambda done: os.kill(other_rank(), signal.SIGKILL) if done == 2 else None)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(PeerFailed, match="^rank 1 was killed by SIGKILL"):
            cell.run("pretrain")
        assert torch.get_num_threads() == 3  # ranks share the processor; who called them has all of it again
    finally:
        torch.set_num_threads(threads)
    error = read_record(cell.plan.pretrain.folder(tmp_path))["error"]
    assert error["type"] == "SIGKILL"
    assert error["attempt"] == 1
    assert multiprocessing.active_children() == []


RANK = """
import sys
from pathlib import Path
from test_distributed import config_of
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
import ratplus.training.step as training_step

def main():
    text, root, rank, plant = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if rank == 1 and plant == "memory":
        step = training_step.TrainingModule.training_step
        def broken(self, batch, index):
            if batch[0] == 2:
                raise MemoryError("planted")
            return step(self, batch, index)
        training_step.TrainingModule.training_step = broken
    config = config_of(text, "ddp", 2, micro=2)
    if rank == 1 and plant == "other config":
        config.seed = 1
    print("record", Cell(config, Surroundings(root)).run("pretrain")["id"])
"""


def start_ranks(text, root, tmp_path, plant="", by="torchrun") -> list[subprocess.CompletedProcess]:
    """Both ranks as torchrun or srun would start them, to their end; forked, so that they need not import torch."""
    (tmp_path / "rank_script.py").write_text(RANK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folders = [tmp_path, Path(__file__).parent, Path(cli_runs.__file__).parent]
    processes = []
    for rank in range(2):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        if by == "srun":
            given = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_STEP_NUM_TASKS": 2}
        environment = os.environ | {k: str(v) for k, v in given.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
        with (tmp_path / f"out{rank}").open("wb") as out, (tmp_path / f"err{rank}").open("wb") as err:
            processes.append(
                cli_runs.warm_server().fork(
                    "rank_script:main", ["rank", str(text), str(root), str(rank), plant], environment=environment,
                    cwd=str(tmp_path), stdout=out.fileno(), stderr=err.fileno(),
                )
            )  # fmt: skip
    try:
        codes = [process.wait(2 * LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    printed = [[(tmp_path / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(2)]
    return [subprocess.CompletedProcess([], code, *texts) for code, texts in zip(codes, printed, strict=True)]


def test_a_failure_of_another_rank_is_recorded_in_its_words(text, tmp_path):
    ended = start_ranks(text, tmp_path / "sweep", tmp_path, plant="memory")
    assert [e.returncode for e in ended] == [1, 1]
    (path,) = (tmp_path / "sweep" / "pretrain").iterdir()
    error = read_record(path)["error"]
    assert error["type"] == "MemoryError"
    assert error["message"].startswith("rank 1 on ")
    assert error["message"].endswith(
        "planted; to use less memory, try train.pretrain.micro_batch=1 or trainer.activation_checkpointing=true"
    )
    assert any("in broken" in line for line in error["traceback"])


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_ranks_started_by_others(alone, text, tmp_path, by):
    for _ in range(2):  # the second time all is done
        ended = start_ranks(text, tmp_path / "sweep", tmp_path, by=by)
        assert [e.returncode for e in ended] == [0, 0], ended
        (path,) = (tmp_path / "sweep" / "pretrain").iterdir()
        assert [e.stdout.split() for e in ended] == [["record", path.name]] * 2
    assert read_record(path)["status"] == "done"


@pytest.mark.slow
def test_ranks_of_different_configs_are_refused(text, tmp_path):
    ended = start_ranks(text, tmp_path / "sweep", tmp_path, plant="other config")
    assert [e.returncode for e in ended] == [1, 1]
    assert "so code, config or data differ between the two" in ended[0].stderr


@pytest.mark.slow
def test_the_command_line_under_torchrun(text, tmp_path):
    """Two ranks of one cell: reports once, exit code 0; and SIGTERM saves the state on the way out."""
    words = [
        "model=ratplus_nano", "data=text", f"data.path={text / 'text.txt'}", f"data.root={text / 'data'}",
        "data.recall.length=32", "train.context=64", "train.pretrain.batch=4", "train.adapt.batch=4",
        "train.adapt.steps=2", "eval.text_rows=4", "eval.recall_rows=4", "run.threads=1", "run.accelerator=cpu",
        "run.checkpoint_seconds=1000", "logger=none", "trainer=ddp", f"output={tmp_path / 'sweep'}",
    ]  # fmt: skip
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"],
        *[sys.executable, "-c", "from ratplus.sweeps.cli import main; main()", "evaluate"],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    long = subprocess.Popen([*command, *words, "train.pretrain.steps=100000"], env=environment)
    try:
        wait_for(lambda: any(len(p.read_text().splitlines()) > 3 for p in tmp_path.rglob("curve.csv")), 3 * LIMIT)
        long.terminate()
        long.wait(LIMIT)
    finally:
        long.kill()
    assert long.returncode != 0
    assert len(list(tmp_path.rglob("training-*.pt"))) == 1
    assert list(tmp_path.rglob("record.json")) == []

    shutil.rmtree(tmp_path / "sweep")
    done = subprocess.run(
        [*command, *words, "train.pretrain.steps=3"], env=environment, capture_output=True, text=True, timeout=2 * LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 done; table:") == 1


def wait_for(condition, seconds=LIMIT) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- places and shares --------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


def test_places(environment):
    assert place_of(TrainerSection()) == Place()
    assert place_of(TrainerSection("ddp", 2)) == Place(world=2)
    with pytest.raises(LayoutError, match=r"trainer.nodes: got 2; .*srun --ntasks-per-node=4, or torchrun --nnodes=2"):
        place_of(TrainerSection("ddp", 4, nodes=2))
    environment(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, GROUP_RANK=1, MASTER_ADDR="one", MASTER_PORT=5)
    assert place_of(TrainerSection("fsdp", 2, nodes=2)) == Place(3, 4, 1, 1, "one", 5, "torchrun")
    with pytest.raises(LayoutError, match="that makes 2 ranks, but torchrun started 4"):
        place_of(TrainerSection("ddp", 2))
    assert place_of(TrainerSection()) == Place()  # trainer=single looks at nothing


def test_places_in_slurm(environment):
    # A batch script is one process, whatever it reserved: only srun makes ranks.
    environment(SLURM_JOB_ID=123456, SLURM_NTASKS=4, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NODEID=0)
    assert external_place() is None
    environment(SLURM_STEP_NUM_TASKS=1)
    assert external_place() is None
    environment(SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=3, SLURM_LOCALID=1, SLURM_NODEID=1)
    environment(SLURM_STEP_NODELIST="gpu[07-08]")
    assert external_place() == Place(3, 4, 1, 1, "gpu07", 15000 + 3456, "srun")


def test_shares():
    def count(batch, micro, ranks):
        return micro_batches(RecipeSection(batch=batch, micro_batch=micro), ranks, "train.pretrain")

    assert [count(8, None, 1), count(8, 2, 1), count(8, None, 4), count(8, 2, 4), count(8, 1, 4)] == [1, 4, 4, 4, 8]
    assert count(5, None, 2) == 2  # a row more here than there: labels weigh alike
    with pytest.raises(LayoutError, match=r"micro_batch: got 2, which cuts the batch of 6 in 3 parts.*allowed: 1$"):
        count(6, 2, 2)
    # Neither fewer parts than ranks that do not divide them, nor parts of uneven size, are an answer.
    with pytest.raises(LayoutError, match=r"micro_batch: got 3, which cuts the batch of 6 in 2 parts.*allowed: 1, 2$"):
        count(6, 3, 3)
    with pytest.raises(LayoutError, match=r"micro_batch: got 6, which cuts the batch of 18 in 3.*allowed: 1, 3$"):
        count(18, 6, 2)
    with pytest.raises(LayoutError, match=r"train.pretrain.batch: got 2; 4 ranks need at least a row each"):
        count(2, None, 4)


def test_only_stages_that_train_must_share_their_rows(text, tmp_path, monkeypatch):
    monkeypatch.setattr(Cell, "run_stages", lambda self, last, team: {"last": last})
    cell = cell_of(config_of(text, "ddp", 2), tmp_path)
    cell.config.train.adapt.batch = 1
    assert cell.run("pretrain") == {"last": "pretrain"}
    for last in ("adapt", "evaluate"):
        with pytest.raises(LayoutError, match="train.adapt.batch: got 1; 2 ranks"):
            cell.run(last)
    cell.config.train.adapt.batch, cell.config.train.pretrain.batch = 4, 1
    with pytest.raises(LayoutError, match="train.pretrain.batch: got 1; 2 ranks"):
        cell.run()
    cell.config.model.init_from = "weights"
    assert cell.run() == {"last": "evaluate"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux which sockets listen")
def test_the_store_of_one_machine_is_on_loopback():
    from ratplus.training.team import _store_of_this_machine

    store = _store_of_this_machine()
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{store.port:04X}")]
    assert [address.partition(":")[0] for address in listening] == ["0100007F"]
