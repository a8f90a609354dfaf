"""Which process does which rows, where it stands among the others, and the schedule: against plain loops and tables."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from ratplus.config.cell import Config
from ratplus.config.eval import EvalSection
from ratplus.config.run import TrainerSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.data.batches import deal, row_counts
from ratplus.data.sampling import IGNORE, labels_of, ordered_rows, random_rows
from ratplus.data.stream import ShardedStream, join
from ratplus.stages.failures import describe_failure, memory_advice
from ratplus.training.errors import LayoutError
from ratplus.training.ranks import Place, even_sizes, external_place, micro_batches, place_of
from ratplus.training.step import learning_rate, token_loss


@pytest.mark.parametrize(("batch", "ranks"), list(product(range(1, 13), (1, 2, 3, 4, 8))))
def test_micro_batches_by_trying_all(batch, ranks):
    """As many as on one rank, or one a rank if these are more; what ranks cannot share evenly is refused."""
    for size in (None, *(n for n in range(1, batch + 1) if batch % n == 0)):
        recipe = RecipeSection(batch=batch, micro_batch=size)
        count = batch // (size or batch)
        wanted = ranks if count < ranks and ranks % count == 0 and batch >= ranks else count
        if batch >= ranks and wanted % ranks == 0:
            assert micro_batches(recipe, ranks) == wanted
        else:
            with pytest.raises(LayoutError, match=r"^train.x.(micro_)?batch: got"):
                micro_batches(recipe, ranks, "train.x")
    for most in (1, batch // 2, batch):
        fitting = [n for n in range(1, most + 1) if batch % n == 0 and (batch // n) % ranks == 0]
        assert even_sizes(batch, ranks, most) == fitting


@pytest.mark.parametrize("sizes", [(8,), (5, 3), (1, 7), (4, 4), (2, 1, 6)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_rows_are_dealt_in_turn(sizes, count):
    """Every row once; each micro-batch gets its share; with `alike`, so many in a row have the same groups."""
    start, groups = 0, []
    for size in sizes:
        rows = np.arange(start, start + size)[:, None]
        groups.append((rows, rows + 1000))
        start += size
    parts = deal(groups, count)
    dealt = [int(x) for part in parts for inputs, _ in part for x in inputs[:, 0]]
    assert sorted(dealt) == list(range(start))
    assert all((labels == inputs + 1000).all() for part in parts for inputs, labels in part)
    held = [sum(len(inputs) for inputs, _ in part) for part in parts]
    assert max(held) - min(held) <= 1
    for size, (inputs, _) in zip(sizes, groups):
        share = [sum(int(x) in inputs[:, 0] for own, _ in part for x in own[:, 0]) for part in parts]
        assert sum(share) == size
        assert max(share) - min(share) <= 1
    for alike in (n for n in (1, 2, 4, 8) if count % n == 0):
        together = deal(groups, count, alike)
        for first in range(0, count, alike):
            assert len({len(part) for part in together[first : first + alike]}) == 1
        labelled = [int(x) for part in together for inputs, labels in part for x in inputs[labels != IGNORE]]
        assert sorted(labelled) == list(range(start)), "what is added has no labels"


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "77",
            "GROUP_RANK": "1"}  # fmt: skip
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "MASTER_ADDR": "host", "SLURM_JOB_ID": "1234567"}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    def give(values: dict):
        for name in (*TORCHRUN, *SRUN, "SLURM_STEP_NODELIST", "SLURM_NODELIST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


def test_places_that_torchrun_and_srun_give(environment):
    environment(TORCHRUN)
    assert external_place() == Place(3, 4, 1, 1, "host", 77, "torchrun")
    environment({k: v for k, v in TORCHRUN.items() if k != "GROUP_RANK"})
    assert external_place() == Place(3, 4, 1, 0, "host", 77, "torchrun")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment({k: v for k, v in TORCHRUN.items() if k != name})
        assert external_place() is None
    environment(TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"})
    assert external_place() is None
    environment(SRUN)
    assert external_place() == Place(3, 4, 1, 1, "host", 15000 + 4567, "srun")
    environment(SRUN | {"MASTER_PORT": "88"})
    assert external_place() == Place(3, 4, 1, 1, "host", 88, "srun")
    environment({k: v for k, v in SRUN.items() if k != "MASTER_ADDR"} | {"SLURM_STEP_NODELIST": "n[07-09]"})
    found = external_place()
    assert found is not None
    assert found.address == "n07"
    environment(SRUN | {"SLURM_STEP_NUM_TASKS": "1"})
    assert external_place() is None


def test_the_ranks_that_are_asked_for_are_those_that_were_started(environment):
    environment(TORCHRUN)
    assert place_of(TrainerSection()) == Place(), "trainer=single never looks at the environment"
    assert place_of(TrainerSection("ddp", 2, 2)).rank == 3
    assert place_of(TrainerSection("ddp", 4)).world == 4
    for devices, nodes in ((3, 1), (2, 1), (4, 2)):
        with pytest.raises(
            LayoutError, match=rf"trainer.devices: got {devices}; with trainer.nodes={nodes} that makes"
        ):
            place_of(TrainerSection("ddp", devices, nodes))
    environment({})
    assert place_of(TrainerSection("ddp", 3)) == Place(world=3)
    with pytest.raises(LayoutError, match="trainer.nodes: got 2; several nodes need a rank for each device"):
        place_of(TrainerSection("ddp", 3, 2))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (10, 0.0), (10, 0.05), (10, 0.1), (10, 0.25), (7, 0.9)])
def test_the_schedule_by_its_formula(steps, warmup):
    recipe = RecipeSection(steps=steps, lr=2.0, lr_min=0.5, warmup=warmup)
    warm = math.floor(warmup * steps)
    for step in range(steps):
        if step < warm:
            expected = 2.0 * (step + 1) / warm
        else:
            expected = 0.5 + 1.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        assert learning_rate(step, recipe) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_a_sum_over_labels_in_at_least_float32(dtype):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.tensor([[1, IGNORE, 2], [IGNORE, 0, 4]])
    found = token_loss(logits, labels)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    by_hand = -sum(
        float(logits[b, t].double().log_softmax(-1)[labels[b, t]]) for b, t in product(range(2), range(3))
        if labels[b, t] != IGNORE
    )  # fmt: skip
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


# ---- rows of a stream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(7,), (3, 4), (1, 1, 5), (0, 7), (2, 0, 3, 2)])
def test_a_stream_of_shards_is_read_as_one_array(lengths):
    whole = np.arange(7, dtype=np.uint16)
    stream = ShardedStream([part for part in np.split(whole, np.cumsum(lengths)[:-1]) if len(part)])
    assert (len(stream), stream.dtype) == (7, whole.dtype)
    np.testing.assert_array_equal(np.asarray(stream), whole)
    for first, last in product([None, *range(-9, 10)], repeat=2):
        np.testing.assert_array_equal(stream[first:last], whole[first:last])
    assert [stream[i] for i in range(-7, 7)] == [whole[i] for i in range(-7, 7)]
    for wrong in (7, -8):
        with pytest.raises(IndexError):
            stream[wrong]
    with pytest.raises(ValueError, match="a stream is read in steps of 1; got 2"):
        stream[::2]
    assert join([whole]) is whole
    assert isinstance(join([whole, whole]), ShardedStream)


@pytest.mark.parametrize(("length", "context"), [(9, 4), (8, 4), (5, 4), (13, 4), (12, 1)])
def test_windows_in_order_by_a_loop(length, context):
    stream, seen = np.arange(length), set()
    windows = [list(range(start, start + context + 1)) for start in range(0, length - context, context)]
    for step in range(5):
        rows = ordered_rows(stream, step, 3, context)
        assert rows.tolist() == [windows[(3 * step + row) % len(windows)] for row in range(3)]
        assert rows.dtype == np.int64
    for step in range(300):
        seen |= {int(row[0]) for row in random_rows(stream, 0, step, 2, context)}
    assert seen == set(range(length - context)), "every offset is drawn, the last one too"
    for rows in (ordered_rows, lambda s, *a: random_rows(s, 0, *a)):
        with pytest.raises(ValueError, match=f"train.context={context}: the stream holds only {context} tokens"):
            rows(stream[:context], 0, 1, context)


def test_random_rows_are_of_seed_step_and_purpose():
    stream = np.arange(1000)
    drawn = {
        tuple(random_rows(stream, seed, step, 4, 5, purpose=purpose)[:, 0])
        for seed, step, purpose in product((0, 1), (0, 1), (0, 1, 2))
    }
    assert len(drawn) == 12
    assert (random_rows(stream, 1, 2, 4, 5) == random_rows(stream, 1, 2, 4, 5, purpose=0)).all()


def test_what_follows_an_end_of_text_is_no_label():
    inputs, following = np.array([[1, 0, 2], [0, 0, 3]]), np.array([[0, 2, 5], [0, 3, 0]])
    assert labels_of(inputs, following, 0).tolist() == [[0, IGNORE, 5], [IGNORE, IGNORE, 0]]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_text_and_recall_rows_are_about_a_batch(fraction):
    config = Config(train=TrainSection(context=512))
    config.data.recall.fraction = fraction
    for batch in (1, 2, 7, 8, 32):
        text, recall = row_counts(batch, 512, config.data.recall)
        assert abs(text * 512 + recall * 128 - batch * 512) <= 0.5 * (512 + 128)
        assert abs(recall * 128 - fraction * batch * 512) <= 64


# ---- what a failure says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_name", "message", "memory"),
    [
        ("OutOfMemoryError", "", True), ("MemoryError", "", True), ("SIGKILL", "killed", True),
        ("ProcessEnded", "SIGKILL", True), ("RuntimeError", "can't allocate memory: tried 9", True),
        ("ValueError", "a SIGKILL of something", False), ("RuntimeError", "no", False),
    ],
)  # fmt: skip
def test_which_failures_are_for_want_of_memory(type_name, message, memory):
    assert (memory_advice(type_name, message, "adapt", Config()) is not None) == memory


@pytest.mark.parametrize(
    ("stage", "trainer", "batch", "micro", "said"),
    [
        ("adapt",
         {}, 8, None, "to use less memory, try train.adapt.micro_batch=4 or trainer.activation_checkpointing=true"),
        ("adapt", {"activation_checkpointing": True}, 8, 4, "to use less memory, try train.adapt.micro_batch=2"),
        ("adapt", {"strategy": "ddp", "devices": 2}, 8, None,
         "to use less memory, try train.adapt.micro_batch=2 or trainer.activation_checkpointing=true"),
        ("adapt", {"strategy": "ddp", "devices": 2, "nodes": 2, "activation_checkpointing": True}, 8, None,
         "to use less memory, try train.adapt.micro_batch=1"),
        ("adapt", {"activation_checkpointing": True}, 1, None, "it works on one row at a time already: try a shorter "
         "train.context, a smaller model, or trainer=fsdp on several GPUs"),
        ("adapt", {"activation_checkpointing": True, "strategy": "fsdp"}, 1, None, "it works on one row at a time "
         "already: try a shorter train.context, a smaller model"),
        ("evaluate", {}, 8, None, "to use less memory, try eval.batch=8"),
    ],
)  # fmt: skip
def test_what_to_try_with_less_memory(stage, trainer, batch, micro, said):
    recipe = RecipeSection(batch=batch, micro_batch=micro)
    config = Config(train=TrainSection(adapt=recipe), trainer=TrainerSection(**trainer), eval=EvalSection(batch=16))
    assert memory_advice("MemoryError", "", stage, config) == said


def test_a_failure_keeps_its_last_lines_and_counts_on(tmp_path):
    told = describe_failure("T", "m", [f"line {i}" for i in range(60)], tmp_path)
    assert told["traceback"] == [f"line {i}" for i in range(10, 60)]
    assert (told["type"], told["message"], told["attempt"]) == ("T", "m", 1)
    assert told["host"]
    assert describe_failure("T", "m", [], tmp_path, "there")["host"] == "there"
