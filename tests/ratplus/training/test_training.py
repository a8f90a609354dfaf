"""Training resumes exactly, micro-batches add up, and stages are idempotent."""

import csv
import os
import signal
import threading
from dataclasses import fields, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ratplus import ModelConfig, Pattern, RATPlus
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.folder import save_weights
from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.run import RunSection, TrainerSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.data.batches import Batches
from ratplus.data.corpus import open_corpus, write_corpus
from ratplus.records.curve import StageLog
from ratplus.records.record import read_record, write_record
from ratplus.stages.cell import Cell
from ratplus.stages.failures import memory_advice
from ratplus.stages.run_stage import Surroundings
from ratplus.training.errors import Interrupted
from ratplus.training.run import Saver, StepLoader, train
from ratplus.training.spec import Run, Shares, Watch
from ratplus.training.state import layouts_of, load_state, what_it_reads
from ratplus.training.step import learning_rate

RUN = RunSection(accelerator="cpu", checkpoint_seconds=0.0, log_every=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    documents = [(f"d{i}", f"text {i} " * 60) for i in range(40)]
    return open_corpus(write_corpus(folder, documents, source={"name": "test"}, validation_fraction=0.3))


def batches_of(corpus, length=16) -> Batches:
    config = Config(
        train=TrainSection(context=32), data=DataSection(recall=RecallSection(length=length, keys=4, values=4, pairs=4))
    )
    return Batches.of(config, corpus)


def run(
    corpus, folder, steps=6, stop_at=None, micro=None, precision="float32", length=16, crash_at=None, batch=4,
    log_every=1, **trainer,
):  # fmt: skip
    """Train a tiny model with active recurrence learning; with `stop_at`, SIGTERM arrives during that step.

    With `crash_at`, that step ends the run before its state is saved.
    """
    folder.mkdir(exist_ok=True)
    batches = batches_of(corpus, length)
    model = RATPlus(ModelConfig(batches.vocab_size, 2, 16, 8, max_len=32))
    model.reset_parameters(0, 0.2)
    recipe = RecipeSection(steps=steps, batch=batch, micro_batch=micro, lr=1e-2, arl=True)

    def progress(done, _total, _numbers):
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if done == crash_at:
            raise ZeroDivisionError

    how = Run(
        purpose="pretrain", stage_id="s", recipe=recipe, rows=batches, arl=Pattern(8), precision=precision,
        run=replace(RUN, log_every=log_every), trainer=TrainerSection(**trainer),
    )  # fmt: skip
    outcome = train(model, how, folder, Watch(log=StageLog(folder), progress=progress))
    return model.state_dict(), outcome


def same(a, b) -> bool:
    return a.keys() == b.keys() != set() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_interrupted_training_ends_in_the_same_bits(data, tmp_path, micro):
    """Weights and curve, whichever step a signal or a crash came in; each step has two passes, of `micro` rows."""
    straight, whole = run(data, tmp_path / "straight", micro=micro)
    assert whole.first_step == 0
    for at in range(1, 7) if micro is None else (3, 6):
        folder = tmp_path / f"at{at}"
        with pytest.raises(Interrupted) as stopped:
            run(data, folder, stop_at=at, micro=micro)
        assert stopped.value.number == signal.SIGTERM
        assert load_state(folder, "s")["step"] == at
        if at < 6:
            with pytest.raises(ZeroDivisionError):
                run(data, folder, crash_at=at + 1, micro=micro)
        resumed, outcome = run(data, folder, micro=micro)
        assert outcome.first_step == at
        assert same(straight, resumed)
        # Also where no step was left to do: the report is then the one that was saved.
        assert outcome.report == whole.report
        assert (folder / "curve.csv").read_text() == (tmp_path / "straight" / "curve.csv").read_text()


def test_of_two_training_states_the_newest_is_loaded(data, tmp_path):
    """A kill between writing a state and removing the one before leaves both."""
    folder = tmp_path / "x"
    with pytest.raises(Interrupted):
        run(data, folder, stop_at=2)
    (first,) = folder.glob("training-*.pt")
    content = first.read_bytes()
    with pytest.raises(Interrupted):
        run(data, folder, stop_at=4)
    first.write_bytes(content)
    assert len(list(folder.glob("training-*.pt"))) == 2
    assert load_state(folder, "s")["step"] == 4


def test_all_that_decides_a_step_is_compared_before_training_goes_on():
    rows = SimpleNamespace(context=64, seed=0, recall_fraction=0.5)
    recipe = RecipeSection()
    reads = what_it_reads(recipe, rows, "adapt")
    assert what_it_reads(replace(recipe, micro_batch=1), rows, "adapt") == reads
    for name, value in vars(rows).items():
        assert what_it_reads(recipe, SimpleNamespace(**{**vars(rows), name: value + 1}), "adapt") != reads, name
    assert reads.keys() == {f"train.adapt.{f.name}" for f in fields(recipe) if f.name != "micro_batch"} | {
        "train.context", "seed", "data.recall.fraction",
    }  # fmt: skip


def test_a_state_is_saved_every_so_many_seconds():
    clock, saved = SimpleNamespace(now=0.0), []
    saver = Saver(10.0, lambda done, whole: saved.append((done, clock.now, whole)), clock=lambda: clock.now)
    module = SimpleNamespace(recipe=RecipeSection(steps=9), whole_state=lambda: {"model": clock.now})
    saver.on_train_start(None, module)
    try:
        for step, clock.now in enumerate([4.0, 9.9, 10.0, 19.9, 20.5, 30.4, 30.5, 30.6, 99.0]):
            saver.on_train_batch_end(None, module, None, (step, []), step)
    finally:
        saver.teardown(None, module, "fit")
    # Seconds count from the last time; after the last step the weights themselves are written.
    assert saved == [(3, 10.0, {"model": 10.0}), (5, 20.5, {"model": 20.5}), (7, 30.5, {"model": 30.5})]


def test_the_two_passes_of_a_step_share_its_learning_rate(data, tmp_path):
    """With ARL, an optimizer steps twice for each step of the schedule, which decays here."""
    used = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        run(data, tmp_path / "x", steps=6)
    finally:
        hook.remove()
    expected = [learning_rate(step, RecipeSection(steps=6, lr=1e-2)) for step in range(6)]
    assert len(set(expected)) > 3
    assert used == [rate for rate in expected for _ in range(2)]
    with (tmp_path / "x" / "curve.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == pytest.approx(expected)


def test_a_curve_has_the_first_step_every_so_many_and_the_last(data, tmp_path):
    run(data, tmp_path / "x", steps=6, log_every=4)
    with (tmp_path / "x" / "curve.csv").open() as file:
        rows = [(int(row["step"]), int(row["tokens"])) for row in csv.DictReader(file)]
    assert rows == [(step, step * 4 * 32) for step in (1, 4, 6)]  # four rows of 32 tokens a step


def test_continuing_with_another_batch_layout(data, tmp_path):
    """What changes the data of a step is refused; what only changes the order of sums is done, and told."""
    with pytest.raises(Interrupted):
        run(data, tmp_path / "x", stop_at=2)
    with pytest.raises(CheckpointError, match=r"train.pretrain.batch was 4 when this state was saved and is 8 now"):
        run(data, tmp_path / "x", batch=8)
    with pytest.raises(CheckpointError, match=r"train.pretrain.steps was 6 .* delete the file to train this stage"):
        run(data, tmp_path / "x", steps=7)
    _, outcome = run(data, tmp_path / "x", micro=1)
    assert [(at["from_step"], at["micro_batches"]) for at in outcome.layouts] == [(0, 1), (2, 4)]


def test_layouts_of_a_run_that_returns_to_an_earlier_one():
    """Each is compared with the one just before it, and what an older state does not say it had as it is now."""
    one, other = (Shares(strategy="single", ranks=1, micro_batches=n, compile=False) for n in (1, 2))
    layouts = layouts_of(None, one)
    for step, layout in ((2, one), (3, other), (4, other), (5, one), (6, one)):
        layouts = layouts_of({"step": step, "layouts": layouts}, layout)
    assert [(at["from_step"], at["micro_batches"]) for at in layouts] == [(0, 1), (3, 2), (5, 1)]
    older = layouts_of({"step": 4}, other)
    assert older == [{"from_step": 0, "strategy": "single", "ranks": 1}]
    assert [at["from_step"] for at in layouts_of({"step": 4}, {**other, "compile": True})] == [0, 4]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activation_checkpointing_changes_no_bit(data, tmp_path, precision, monkeypatch):
    """With both passes of a step and several micro-batches; and blocks are indeed computed again."""
    from ratplus.model.network import Block

    def blocks_run(**trainer):
        calls = []
        forward = Block.forward
        with monkeypatch.context() as patched:
            patched.setattr(Block, "forward", lambda *words: calls.append(1) or forward(*words))
            weights, _ = run(
                data, tmp_path / str(len(trainer)), steps=3, micro=2, precision=precision, length=32, **trainer
            )
        return weights, len(calls)

    (plain, once), (light, twice) = blocks_run(), blocks_run(activation_checkpointing=True)
    assert same(plain, light)
    assert twice == 2 * once > 0


def test_compiled_blocks(data, tmp_path, monkeypatch):
    """Same losses; a graph for each pass and shape of rows, made in the first steps and never again; then undone.

    Stopped and continued without it, a run says so.
    """
    import torch._dynamo.testing

    from ratplus.training import blocks as blockwise

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(blockwise, "BACKEND", counter)
    plain, _ = run(data, tmp_path / "plain", steps=4)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "compiled", steps=4, stop_at=3, compile=True, activation_checkpointing=True)
    assert counter.frame_count == 4  # text and recall rows, each dense and dilated
    compiled, outcome = run(data, tmp_path / "compiled", steps=4)
    assert [(at["from_step"], at["compile"]) for at in outcome.layouts] == [(0, True), (3, False)]
    assert counter.frame_count == 4
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-5)


def test_compiling_needs_a_compiler(config, tmp_path):
    import torch._inductor.config

    from ratplus.training.errors import LayoutError

    config.trainer = TrainerSection(compile=True)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(LayoutError, match=r"trainer.compile: got True; .* needs a C\+\+ compiler .*compile=false"),
    ):
        Cell(config, Surroundings(tmp_path / "sweep")).run("pretrain")
    assert not (tmp_path / "sweep").exists()


def test_handlers_are_put_back(data, tmp_path):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted):
        run(data, tmp_path / "x", stop_at=2)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("length", [16, 32])
def test_micro_batches_add_up(data, tmp_path, length):
    """Four micro-batches give the gradients of the whole batch: losses and weights agree to rounding.

    With rows of one length there are as few rows as micro-batches, so some of these hold text or recall alone.
    """
    whole, a = run(data, tmp_path / "a", steps=1, length=length)
    parts, b = run(data, tmp_path / "b", steps=1, micro=1, length=length)
    for name in ("arl_loss", "arl_grad_norm", "loss"):
        assert a.report[name] == pytest.approx(b.report[name], rel=1e-4)
    # AdamW's first steps are sign-like: compare the tensors, not every entry.
    for name, tensor in whole.items():
        assert (tensor - parts[name]).norm() < 0.05 * tensor.norm(), name


@pytest.mark.parametrize(("precision", "inside"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_precision_of_projections_and_of_weights(data, tmp_path, precision, inside):
    """Under bf16 a projection's output is bf16, and the weights and what the optimizer keeps stay float32."""
    seen = set()

    def look(module, _inputs, output):
        if isinstance(module, torch.nn.Linear):
            seen.add(output.dtype)

    hook = register_module_forward_hook(look)
    try:
        with pytest.raises(Interrupted):
            run(data, tmp_path / "x", precision=precision, stop_at=2)
    finally:
        hook.remove()
    assert seen == {inside}
    state = load_state(tmp_path / "x", "s")
    kept = [value for moments in state["optimizer"]["state"].values() for value in moments.values()]
    assert {tensor.dtype for tensor in (*state["model"].values(), *kept)} == {torch.float32}


def test_damaged_training_state(data, tmp_path):
    with pytest.raises(Interrupted):
        run(data, tmp_path / "x", stop_at=2)
    (state,) = (tmp_path / "x").glob("training-*.pt")
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or altered; delete it"):
        run(data, tmp_path / "x")


def test_state_of_another_stage(data, tmp_path):
    with pytest.raises(Interrupted):
        run(data, tmp_path / "x", stop_at=2)
    with pytest.raises(CheckpointError, match="training state of stage s, not other"):
        load_state(tmp_path / "x", "other")


def test_schedule_ends():
    recipe = RecipeSection(steps=10, lr=1.0, lr_min=0.1, warmup=0.2)
    rates = [learning_rate(step, recipe) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(a > b for a, b in pairwise(rates[2:]))
    assert rates[-1] > 0.1
    assert learning_rate(0, RecipeSection(steps=1, warmup=0.0, lr=1.0)) == 1.0


# ---- stages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    small = RecipeSection(steps=3, batch=2)
    return Config(
        model=ModelSection("nano", layers=1, d_model=16, d_head=8),
        data=DataSection(
            source="text", path=str(tmp_path / "text.txt"), root=str(tmp_path / "data"),
            recall=RecallSection(length=16, keys=4, values=4, pairs=4),
        ),
        train=TrainSection(context=32, pretrain=small, adapt=RecipeSection(steps=2, batch=2, order="random")),
        eval=EvalSection(text_rows=8, recall_rows=8, batch=4),
        run=RUN,
    )  # fmt: skip


def test_three_stages_once(config, tmp_path):
    said = []
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append))
    record = cell.run()
    assert record["stage"] == "evaluate"
    assert record["parent"] == cell.plan.adapt.id
    for name in ("loss", "perplexity", "next_token_accuracy", "recall_accuracy"):
        metric = record["metrics"][name]
        assert metric["count"] > 0
        assert metric["stderr"] >= 0
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("*") if p.is_file()}
    assert Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append)).run() == record
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("*") if p.is_file()} == stamps
    names = {p.name for p in stamps}
    assert names == {"record.json", "samples.jsonl", "curve.csv", "model.safetensors", "config.json"}
    assert said == []


def test_a_kill_before_the_record_costs_no_training(config, tmp_path, monkeypatch):
    """The training state goes only after the record stands; what a kill in between leaves is tidied later."""
    import ratplus.stages.run_stage as stages

    config.run = RunSection(accelerator="cpu", checkpoint_seconds=0.0)
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
    folder = cell.plan.pretrain.folder(tmp_path / "sweep")

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            cell.run("pretrain")
    assert len(list(folder.glob("training-*.pt"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(stages, "tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            cell.run("pretrain")
    record = cell.run("pretrain")
    assert record["timing"]["resumed_at_step"] == 2
    assert list(folder.glob("training-*.pt")) == []


def test_damaged_record_is_told_and_redone(config, tmp_path):
    said = []
    first = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append)).run()
    path = tmp_path / "sweep" / "evaluate" / first["id"] / "record.json"
    path.write_text(path.read_text()[:50])
    again = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append)).run()
    assert again["metrics"] == first["metrics"]
    assert len(said) == 1
    assert "not a whole record" in said[0]


def test_what_changes_a_result_changes_the_id(config, tmp_path):
    def ids(**changes):
        import copy

        changed = copy.deepcopy(config)
        for key, value in changes.items():
            target = changed
            *path, last = key.split("__")
            for name in path:
                target = getattr(target, name)
            setattr(target, last, value)
        return [stage.id for stage in Cell(changed, Surroundings(tmp_path)).plan]

    base = ids()
    for runtime in (
        {"run__threads": 1},
        {"eval__batch": 3},
        {"output": "x"},
        {"model__name": "other"},
        {"launcher__workers": 9},
        {"trainer__activation_checkpointing": True},
        {"trainer__compile": True},
        {"train__pretrain__micro_batch": 1},
        {"train__adapt__micro_batch": 2},
    ):
        assert ids(**runtime) == base
    pretrain, adapt, evaluate = ids(pattern__dilation=4)
    assert pretrain == base[0]
    assert adapt != base[1]
    assert evaluate != base[2]
    assert ids(eval__text_rows=4)[:2] == base[:2]
    for science in ({"seed": 1}, {"train__pretrain__steps": 4}, {"model__d_model": 32}, {"data__recall__pairs": 2}):
        assert not set(ids(**science)) & set(base)
    # A recall task that takes no part has no say.
    without = ids(data__recall__fraction=0.0)
    assert not set(without) & set(base)
    assert ids(data__recall__fraction=0.0, data__recall__pairs=2, data__recall__length=8) == without


def test_failure_is_recorded_then_retried(config, tmp_path, monkeypatch):
    from ratplus.evaluation import suites

    def broken(*_):
        raise RuntimeError("first line\nlast line")

    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
    with monkeypatch.context() as patched:
        patched.setattr(suites, "evaluate_suites", broken)
        with pytest.raises(RuntimeError, match="last line"):
            cell.run()
    record = read_record(cell.plan.evaluate.folder(tmp_path / "sweep"))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "RuntimeError"
    assert "last line" in record["error"]["message"]
    assert any("broken" in line for line in record["error"]["traceback"])
    assert record["error"]["attempt"] == 1
    with monkeypatch.context() as patched:
        patched.setattr(suites, "evaluate_suites", broken)
        with pytest.raises(RuntimeError):
            cell.run()
    assert read_record(cell.plan.evaluate.folder(tmp_path / "sweep"))["error"]["attempt"] == 2
    assert cell.run()["status"] == "done"


def out_of_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_ram(*_):
    torch.empty(2**50)


@pytest.mark.parametrize("broken", [out_of_gpu, out_of_ram])
@pytest.mark.parametrize(
    ("batch", "micro", "advice"),
    [
        (6, None, "train.pretrain.micro_batch=3 or trainer.activation_checkpointing=true"),
        (6, 2, "train.pretrain.micro_batch=1 or"),
        (1, None, "try trainer.activation_checkpointing=true"),
    ],
)
def test_out_of_memory_says_what_to_try(config, tmp_path, monkeypatch, broken, batch, micro, advice):
    from ratplus.records.record import read_record
    from ratplus.training.step import TrainingModule

    config.train.pretrain = RecipeSection(steps=2, batch=batch, micro_batch=micro)
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(RuntimeError, match=advice):
        cell.run("pretrain")
    message = read_record(cell.plan.pretrain.folder(tmp_path / "sweep"))["error"]["message"]
    assert advice in message
    assert "memory" in message.split(";")[0]


def test_memory_advice_fits_the_ranks_and_the_stage(config):
    config.train.pretrain = RecipeSection(batch=12)
    config.trainer = TrainerSection("ddp", 2)
    assert memory_advice("OutOfMemoryError", "", "pretrain", config) == (
        "to use less memory, try train.pretrain.micro_batch=3 or trainer.activation_checkpointing=true"
    )
    config.trainer.activation_checkpointing = True
    assert memory_advice("OutOfMemoryError", "", "pretrain", config) == (
        "to use less memory, try train.pretrain.micro_batch=3"
    )
    config.train.pretrain = RecipeSection(batch=2)
    assert "one row at a time already: try a shorter train." in memory_advice("MemoryError", "", "pretrain", config)
    assert memory_advice("MemoryError", "", "evaluate", config) == "to use less memory, try eval.batch=2"
    config.eval.batch = 1
    assert "smaller model" in memory_advice("MemoryError", "", "evaluate", config)
    assert memory_advice("ValueError", "no", "pretrain", config) is None


def test_the_advice_continues_the_same_stage(config, tmp_path, monkeypatch):
    """Rows at a time are not science: after running out of memory, fewer of them go on with the saved state."""
    from ratplus.training.step import TrainingModule

    config.train.pretrain, said = RecipeSection(steps=4, batch=4), []
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append))
    step = TrainingModule.training_step
    with monkeypatch.context() as patched:
        patched.setattr(
            TrainingModule, "training_step", lambda self, b, i: out_of_gpu() if b[0] == 2 else step(self, b, i)
        )
        with pytest.raises(RuntimeError, match="try train.pretrain.micro_batch=2"):
            cell.run("pretrain")
    config.train.pretrain.micro_batch = 2
    config.trainer.activation_checkpointing = True
    record = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append)).run("pretrain")
    assert record["id"] == cell.plan.pretrain.id
    assert record["timing"]["resumed_at_step"] == 2
    assert [(at["from_step"], at["micro_batches"]) for at in record["timing"]["layouts"]] == [(0, 1), (2, 2)]
    assert "continues at step 2 with trainer=single (1 ranks, 2 micro-batches), before with" in said[-1]


def test_nan_model_fails_its_evaluation(config, tmp_path):
    from ratplus import checkpoint

    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
    cell.run("adapt")
    folder = cell.plan.adapt.folder(tmp_path / "sweep")
    model = checkpoint.load(folder)
    model.norm.weight.data[0] = float("nan")
    record = read_record(folder)
    weights = save_weights(model.config, model.state_dict(), folder)
    parts = {key: record[key] for key in ("stage", "config", "parent", "status", "metrics", "timing", "provenance")}
    write_record(folder, **parts, weights_sha256=weights)
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        cell.run()


def test_missing_weights_of_a_done_parent(config, tmp_path):
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
    cell.run("pretrain")
    (cell.plan.pretrain.folder(tmp_path / "sweep") / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        cell.run()


def test_pinned_rows_are_the_same_rows_in_one_piece(data, monkeypatch):
    """Page-locked memory needs CUDA; what is asked of it does not."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda rows: pinned.append(rows) or rows)
    recipe, batches = RecipeSection(steps=2, batch=4), batches_of(data)
    plain, locked = (list(StepLoader(batches, recipe, "pretrain", 0, pinned=p)) for p in (False, True))
    assert [step for step, _ in locked] == [0, 1]
    for (_, ours), (_, theirs) in zip(plain, locked, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(pinned) == sum(len(group) for _, groups in locked for group in groups)
    assert all(rows.is_contiguous() for rows in pinned)
