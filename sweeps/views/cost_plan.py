"""What a sweep would cost, from its config alone: the text of `ratplus plan`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ratplus.checkpoint.start import vocabulary_of
from ratplus.config.cell import Config
from ratplus.config.model import ModelConfig
from ratplus.config.train import RecipeSection
from ratplus.costs.budget import evaluation_rows, forward_flops, harness_rows, parameters, stage_flops, trained_patterns
from ratplus.costs.facts import at_most
from ratplus.costs.memory import BYTES_PER_ELEMENT, training_memory
from ratplus.costs.of_model import model_cost
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.record import STAGES, TRAINING
from ratplus.stages.stage_ids import plan
from ratplus.sweeps.define.compose import Composed
from ratplus.sweeps.views.text_table import columns

_GB = 1e9


@dataclass(frozen=True)
class Throughput:
    """How fast a GPU trains, as the user estimates it.

    Attributes:
        mfu: model FLOPs utilization, the fraction of `tflops` that training reaches, in (0, 1].
        tflops: peak of a GPU in 1e12 floating-point operations a second.
        tokens_per_second: tokens that a GPU takes a second in every stage, instead of the two above.
    """

    mfu: float
    tflops: float
    tokens_per_second: float | None = None

    def hours(self, tokens: int, flops: int) -> float:
        """GPU-hours of work on so many tokens, or so many floating-point operations."""
        if self.tokens_per_second:
            return tokens / self.tokens_per_second / 3600
        return flops / (self.mfu * self.tflops * 1e12) / 3600

    def __str__(self) -> str:
        if self.tokens_per_second:
            return f"every stage at {self.tokens_per_second:g} tokens a second and GPU"
        return f"{self.mfu:.0%} of {self.tflops:g} TFLOP/s a GPU"


def print_costs(cells: list[Composed], text_vocab: int | None, speed: Throughput) -> None:
    """Print parameters, tokens, FLOPs, GPU-hours, memory a GPU and each pattern's savings for all cells.

    Args:
        text_vocab: tokens of the text's vocabulary; None takes those of an imported model's tokenizer, and else bytes.
    """
    of_model: dict[str, list[Composed]] = {}
    for cell in cells:
        model = cell.config.model.build(_text_vocab(cell.config, text_vocab), cell.config.train.context)
        of_model.setdefault(repr((cell.config.model.name, model, cell.config.trainer)), []).append(cell)
    texts = [_model_text(group, _text_vocab(group[0].config, text_vocab), speed) for group in of_model.values()]
    print("\n\n".join(texts))
    for note in dict.fromkeys(filter(None, (_harness_note(cell.config) for cell in cells))):
        print(f"\n{note}")
    print(
        f"\nGPU-hours are estimates: {speed}. Memory is what tensors need at the peak of a training step; "
        "a few percent come on top for the allocator and kernels."
    )


def _text_vocab(config: Config, given: int | None) -> int:
    folder = config.model.init_from
    return given or (vocabulary_of(Path(folder)) if folder else None) or ByteTokenizer.vocab_size


def _model_text(cells: list[Composed], vocab: int, speed: Throughput) -> str:
    config = cells[0].config
    vocab = plan(config, {}, vocab).vocab_size  # with the symbols of the recall task
    model = config.model.build(vocab, config.train.context)
    count = parameters(model)
    keys = "" if model.kv_heads is None else f" on {model.kv_heads} of keys"
    head = (
        f"{config.model.name}: {count:,} parameters ({model.layers} layers, d_model {model.d_model:,}, {model.heads} "
        f"heads of {model.d_head}{keys}, vocabulary {vocab:,}), context {config.train.context:,}"
    )
    return "\n\n".join(
        [
            head,
            columns(_stage_rows(cells, vocab, speed)),
            *_memory_texts(cells, model, count),
            columns(_pattern_rows(cells, model)),
        ]
    )


def _stage_rows(cells: list[Composed], vocab: int, speed: Throughput) -> list[dict]:
    """Make one row a stage: how many distinct ones the cells need, and what these cost in all."""
    needed: dict[str, dict[str, tuple[int, int]]] = {stage: {} for stage in STAGES}
    recipes: dict[str, list[RecipeSection]] = {stage: [] for stage in STAGES}
    for cell in cells:
        config = cell.config
        flops = stage_flops(config, vocab)
        for stage in plan(config, {}, vocab):
            needed[stage.name][stage.id] = (_tokens(config, stage.name), flops[stage.name])
            if stage.name in TRAINING and not (stage.name == "pretrain" and config.model.init_from):
                recipes[stage.name].append(getattr(config.train, stage.name))
    rows = []
    for stage, of_id in needed.items():
        if not of_id:
            continue  # no cell has this stage
        tokens, flops = (sum(column) for column in zip(*of_id.values()))
        rows.append(
            {
                "stage": stage,
                "runs": len(of_id),
                "steps": _least_to_most([recipe.steps for recipe in recipes[stage]]),
                "batch": _least_to_most([recipe.batch for recipe in recipes[stage]]),
                "tokens": f"{tokens:,}",
                "FLOPs": f"{flops:.4g}",
                "GPU-hours": f"{speed.hours(tokens, flops):,.4g}",
            }
        )
    return rows


def _least_to_most(numbers: list[int]) -> str:
    """What all runs of a stage have, or the least and the most of it where they differ."""
    return "–".join(f"{number:,}" for number in dict.fromkeys((min(numbers), max(numbers)))) if numbers else ""


def _tokens(config: Config, stage: str) -> int:
    if stage == "evaluate":
        return sum(rows * length for rows, length in evaluation_rows(config))
    if stage == "pretrain" and config.model.init_from:
        return 0
    recipe = getattr(config.train, stage)
    length = config.train.sft.length if stage == "sft" else None
    return recipe.steps * recipe.batch * (length or config.train.context)


def _harness_note(config: Config) -> str:
    """Say how the count of tokens treats the tasks of lm-eval; empty if there are none."""
    if not config.eval.tasks:
        return ""
    names = ", ".join(task["task"] if isinstance(task, dict) else task for task in config.eval.tasks)
    rows, length = harness_rows(config)
    if not rows:
        return (
            f"evaluate: not counted: {names}; how much they ask is known only when they have been loaded. "
            "With eval.harness.limit=N they are counted, at most."
        )
    return (
        f"evaluate: of these, at most {rows * length:,} tokens a cell are counted for {names}: "
        f"{config.eval.harness.limit} items of each, {length:,} tokens long; an item of several choices counts once."
    )


def _memory_texts(cells: list[Composed], model: ModelConfig, count: int) -> list[str]:
    """What the stages that train hold on each GPU; those that hold the same stand together."""
    stages_of: dict[str, list[str]] = {}
    for cell in cells:
        for stage, patterns in trained_patterns(cell.config).items():
            text = _memory_text(cell.config, stage, patterns, model, count)
            names = stages_of.setdefault(text, [])
            if stage not in names:
                names.append(stage)
    if len(stages_of) == 1:
        return [text.format("training") for text in stages_of]
    return [text.format(", ".join(stages)) for text, stages in stages_of.items()]


def _memory_text(
    config: Config, stage: str, patterns: PatternMap | None, model: ModelConfig, count: int
) -> str:  # fmt: skip
    """The text of one stage, with `{}` where its name belongs."""
    trainer, recipe = config.trainer, getattr(config.train, stage)
    gpus = trainer.devices * trainer.nodes
    rows = min(recipe.micro_batch or recipe.batch, -(-recipe.batch // gpus))
    length = (recipe.length if stage == "sft" else None) or config.train.context
    shards = gpus if trainer.strategy == "fsdp" else 1
    memory = training_memory(
        model, count, rows * length, config.train.precision, shards,
        trainer.activation_checkpointing, patterns,
    )  # fmt: skip
    parts = {k: v for k, v in vars(memory).items()} | {"total": memory.total}
    line = columns([{f"{name} (GB)": f"{value / _GB:.3g}" for name, value in parts.items()}])
    how = f"{trainer.strategy}, {gpus} GPU{'s' if gpus > 1 else ''}, {rows} sequence{'s' if rows > 1 else ''} at a time"
    how += f", {config.train.precision}" + (", activation checkpointing" if trainer.activation_checkpointing else "")
    return f"memory of each GPU in {{}} ({how}):\n{line}"


def _pattern_rows(cells: list[Composed], model: ModelConfig) -> list[dict]:
    """Make one row a pattern: what it saves at the end of the context, beside dense attention.

    What a step reads is shown where some pattern reads less than it holds.
    """
    rows, seen = [], set()
    selects = any(p.data_dependent for cell in cells for row in cell.config.patterns for p in row)
    for cell in cells:
        config = cell.config
        if config.patterns in seen:
            continue
        seen.add(config.patterns)
        length, precision = config.train.context, config.train.precision
        spent = model_cost(model, config.patterns, length, BYTES_PER_ELEMENT[precision])
        dense = forward_flops(model, Pattern(), length)
        rows.append(
            {
                "pattern": config.patterns.label,
                "attention FLOPs": at_most(f"{spent.attention_flops + spent.selection_flops:.4g}", spent.pairs_exact),
                "of dense": f"1/{1 / spent.attention_flops_ratio:.1f}",
                "all FLOPs": f"{forward_flops(model, config.patterns, length) / dense:.1%}",
                "KV bytes a sequence": f"{spent.cache_bytes:,}",
                "KV entries of dense": _part(spent.kv_ratio),
            }
            | ({"KV read of dense": at_most(_part(spent.read_ratio), spent.kv_read_exact)} if selects else {})
        )
    return rows


def _part(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}" if ratio else "0"
