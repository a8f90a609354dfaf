"""`ratplus plan`: figures of a sweep before anything runs."""

import subprocess
import sys

import pytest

from ratplus.sweeps import cli

PAPER = [
    "plan", "model=ratplus_7b", "train=paper_7b", "sweep=paper_dilation", "data.recall.fraction=0", "trainer=fsdp",
    "trainer.devices=8", "trainer.nodes=4", "--vocab", "32000",
]  # fmt: skip


def plan(capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out


def row(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(first + " "))
    return line.split()


def test_tasks_of_lm_eval_count_at_most(capsys):
    words = ["plan", "eval=harness", "eval.tasks=[piqa,{task: arc_easy}]", "eval.harness.max_length=100"]
    text = plan(capsys, *words)
    assert "evaluate: not counted: piqa, arc_easy; how much they ask" in text
    limited = plan(capsys, *words, "eval.harness.limit=7")
    assert "evaluate: of these, at most 1,400 tokens a cell are counted for piqa, arc_easy: 7 items of each" in limited
    tokens = [int(row(t, "evaluate")[2].replace(",", "")) for t in (text, limited)]
    assert tokens[1] - tokens[0] == 1400


def test_the_papers_largest_model(capsys):
    text = plan(capsys, *PAPER)
    assert "ratplus_7b: 7,647,531,008 parameters" in text
    assert row(text, "pretrain")[1:5] == ["1", "34,968", "768", "109,999,816,704"]
    assert row(text, "adapt")[1:4] == ["7", "317", "768"]
    # Two passes of 6 FLOPs a parameter and token, and attention on top.
    assert 12 * 7.5e9 * 1.1e11 < float(row(text, "pretrain")[5]) < 1.1 * 12 * 7.65e9 * 1.1e11
    # 2 (k and v) x 32 layers x 4096 channels x 4096 tokens x 2 bytes, and a float32 state of 2 x 32 x 4096.
    assert row(text, "D1")[-2] == f"{2 * 32 * 4096 * 4096 * 2 + 2 * 32 * 4096 * 4:,}"
    assert row(text, "D64")[-1] == "1/64.0"
    assert row(text, "D64")[2] == "1/63.0"  # every query sees itself too


def test_speed_options(capsys):
    slow, fast = (plan(capsys, *PAPER, "--mfu", mfu) for mfu in ("0.2", "0.4"))
    assert float(row(slow, "adapt")[-1]) == pytest.approx(2 * float(row(fast, "adapt")[-1]), rel=1e-3)
    told = plan(capsys, *PAPER, "--tokens-per-second", "10000")
    assert float(row(told, "adapt")[-1]) == pytest.approx(7 * 317 * 768 * 4096 / 1e4 / 3600, rel=1e-3)


def test_memory_of_strategies(capsys):
    def total(*words):
        lines = plan(capsys, "plan", "model=ratplus_1b", "train=paper_1b", "--vocab", "32000", *words).splitlines()
        (header,) = (i for i, line in enumerate(lines) if "total (GB)" in line)
        return float(lines[header + 1].split()[-1])

    alone, sharded = total(), total("trainer=fsdp", "trainer.devices=8")
    assert total("trainer=ddp", "trainer.devices=8") == alone
    # 16 bytes of each of 1.47e9 parameters, 7/8 of which lie elsewhere; and no bf16 copy of all weights. But a block's
    # weights are there twice in bf16 and its gradient in both precisions, the embedding and its gradient in float32.
    gathered = (10 * 14 * 2048**2 + 8 * 32000 * 2048) / 1e9
    assert alone - sharded == pytest.approx((16 * 7 / 8 + 2) * 1.475 - gathered, rel=0.02)
    light = total("trainer=fsdp", "trainer.devices=8", "trainer.activation_checkpointing=true")
    assert light < 0.6 * sharded


def test_the_gpu_with_most_sequences_decides_the_memory(capsys):
    """Of 12 sequences on 8 GPUs some have two, which they hold together unless they are given one at a time."""
    words = ["plan", "model=ratplus_tiny", "trainer=ddp", "trainer.devices=8"]
    for keys, rows in (
        ({"batch": 12}, "2 sequences"), ({"batch": 16}, "2 sequences"), ({"batch": 8}, "1 sequence"),
        ({"batch": 12, "micro_batch": 1}, "1 sequence"), ({"batch": 17}, "3 sequences"),
    ):  # fmt: skip
        given = [f"train.{stage}.{key}={value}" for stage in ("pretrain", "adapt") for key, value in keys.items()]
        assert f"(ddp, 8 GPUs, {rows} at a time, " in plan(capsys, *words, *given)


def test_fine_tuning_has_rows_of_its_own_length(capsys):
    words = ["plan", "model=ratplus_tiny", "train.context=512", "train.sft.steps=10", "train.sft.batch=4"]
    words.append("train.sft.tasks=[niah_single_1]")

    def of_sft(length: str) -> tuple[str, float]:
        """Its tokens, and the memory of a GPU in it."""
        text = plan(capsys, *words, f"train.sft.length={length}")
        memory = text.partition("memory of each GPU in sft (")[2].splitlines()[2]
        return row(text, "sft")[4], float(memory.split()[-1])

    tokens, memories = zip(*(of_sft(length) for length in ("256", "512", "null")))
    assert tokens == ("10,240", "20,480", "20,480")
    assert memories[0] < memories[1] == memories[2]


def test_the_steps_of_fine_tuning_are_those_of_the_cells_that_have_it(capsys):
    words = ["plan", "model=ratplus_tiny", "train.sft.tasks=[niah_single_1]", "train.sft.batch=4"]
    for steps in ("0,10", "10,0"):
        text = plan(capsys, *words, f"train.sft.steps={steps}")
        assert row(text, "sft")[1:5] == ["1", "10", "4", "20,480"]
        assert row(text, "evaluate")[1] == "2"


def test_steps_and_batches_that_differ_are_told_from_least_to_most(capsys):
    text = plan(capsys, "plan", "model=ratplus_tiny", "train.adapt.steps=40,10,1200", "train.adapt.batch=8,4")
    assert row(text, "adapt")[1:5] == ["6", "10–1,200", "4–8", f"{(40 + 10 + 1200) * (8 + 4) * 512:,}"]
    assert row(text, "pretrain")[1:4] == ["1", "320", "8"]


def test_mixed_adaptation_is_planned_for_the_pattern_that_holds_most(capsys):
    """Which patterns a step draws is not known: the memory is that of one that selects blocks, wherever it is named."""

    def of_adaptation(*mixed: str) -> float:
        text = plan(capsys, "plan", "model=ratplus_tiny", f"train.adapt.mixed=[{','.join(mixed)}]")
        memory = next((part for part in text.split("memory of each GPU in ")[1:] if part.startswith("adapt (")), None)
        return float((memory or text.partition("memory of each GPU in ")[2]).splitlines()[2].split()[-1])

    static = of_adaptation("D1", "D16")
    assert of_adaptation("D1", "top30x16") == of_adaptation("top30x16", "D1") > static


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mfu", "2"], "--mfu: got 2; it is a fraction of --tflops: at most 1"),
        (["--tflops", "0"], "--tflops: got 0; it must be > 0"),
        (["model=ratplus_9b"], "model=ratplus_9b: no such choice"),
    ],
)
def test_mistakes(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_plan_needs_no_torch():
    code = (
        f"import sys\nfrom ratplus.sweeps import cli\ntry:\n    cli.main({PAPER!r})\n"
        "except SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done
